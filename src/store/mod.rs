//! Pure formats and rules of what is stored: no file is opened here.

pub mod admission;
pub mod adoption;
pub mod images;
pub mod layout;
pub mod machine;
pub mod manifest;
pub mod migration;
pub mod pack;
pub mod pieces;
pub mod quota;
pub mod recipe;
pub mod retention;
pub mod sweep;
pub mod ticket;
