//! OAR 2.5 as a site, by its REST API.
//!
//! `wire` is what OAR sends, `submit` what we send; `classify` and `errors` turn OAR's answers into
//! the site's closed types, without IO; `rest` is the client, `http` one exchange of it. Nothing outside this folder
//! sees a type of `wire`.

mod classify;
mod errors;
#[cfg(test)]
mod golden;
pub mod hold;
#[cfg(test)]
mod hold_tests;
mod http;
#[cfg(test)]
mod live_tests;
mod property;
mod rest;
mod submit;
mod wire;
#[cfg(test)]
mod wire_tests;

pub use property::{BadProperty, check as check_property};
pub use rest::OarRest;
