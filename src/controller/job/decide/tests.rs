//! The machine against a small world of facts: what is done is taken to work, unless a test says
//! otherwise.

mod a_rules;
mod admit;
mod adopt;
mod b_rules;
mod c_rules;
mod down;
mod ends;
mod fit;
mod hypervisor;
mod life;
mod main_path;
mod master;
mod one_by_one;
mod own_slot;
mod period;
mod properties;
mod quota;
mod tokens;
mod told;
