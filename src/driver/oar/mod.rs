//! OAR 2.5 as a site, by its REST API.
//!
//! `wire` is what OAR sends, `submit` what we send; `classify` and `errors` turn OAR's answers into
//! the site's closed types, without IO; `rest` is the client. Nothing outside this folder sees a type
//! of `wire`.

pub mod hold;
