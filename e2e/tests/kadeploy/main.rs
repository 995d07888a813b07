//! Whether a deployment server is what our driver takes it for: the client's contract, and the oddities it relies on.
//!
//! The suite knows an address and settings, not which server it talks to. Without `VMDEPLOY_KADEPLOY_URL` each test
//! starts a simulator of its own. With it, all of them use that server, one after the other, but for `replayed`, which
//! is about the simulator, and `secure`, which has one of its own with TLS and passwords:
//!
//! | setting | what | if absent |
//! |---|---|---|
//! | `VMDEPLOY_KADEPLOY_PIN` | the certificate of an https server, see below | one that the system trusts |
//! | `VMDEPLOY_KADEPLOY_PREFIX` | what the names of its own headers begin with | `X-Kadeploy-` |
//! | `VMDEPLOY_KADEPLOY_USER` | the account, see below | `alice` |
//! | `VMDEPLOY_KADEPLOY_NODES` | two nodes, comma between them, for the suite alone | it must be set |
//! | `VMDEPLOY_KADEPLOY_ENVIRONMENT` | one to put on both, `NAME` or, of another user, `NAME@USER` | it must be set |
//! | `VMDEPLOY_KADEPLOY_ADMIN` | an administrator's account | rights are as they are |
//! | `VMDEPLOY_KADEPLOY_OTHER` | another user's account | what others see is not tested |
//! | `VMDEPLOY_KADEPLOY_FILES` | a directory, see below | files that change are not tested |
//! | `TESTBED` | the test bed's command: what it deploys goes with OAR's jobs | that is not tested |
//!
//! An account is `NAME`, by the header, where the server believes it from this machine's address, or `NAME:PASSWORD`,
//! by basic authentication of HTTP. A server with its default settings makes a certificate for itself: its pin is
//! `sha256:` and the digest, as in `sites.*.kadeploy.pin`; the chart's `values.yaml` says how to print that.
//!
//! The directory is one that this machine writes and the server reads: its path, or `HERE=THERE` where the server has
//! it elsewhere.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests, in functions of their own too")]

mod contract;
mod deployments;
mod environments;
mod files;
mod raw;
mod replayed;
mod requests;
mod rights;
mod secure;
mod simulator;
mod slots;
mod world;
