//! The one binary: `vmdeploy <subcommand>`.

fn main() {}
