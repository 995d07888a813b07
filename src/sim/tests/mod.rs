//! Whole lives of jobs in simulated time.

mod bare;
mod clone;
mod crash;
mod images;
mod launched;
mod leave;
mod life;
mod master;
mod matrix;
mod one_by_one;
mod outages;
mod period;
mod random;
mod scarce;
