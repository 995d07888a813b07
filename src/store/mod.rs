//! Pure formats of what is stored: no file is opened here.

pub mod manifest;
pub mod ticket;
