//! The subcommands that people run by hand, one file each: arguments, calls into the library, output.

pub mod agent;
pub mod crds;
pub mod explain;
pub mod get;
pub mod logs;
pub mod member;
