//! A site in memory, for simulated time. Filled in with the OAR driver's contract suite.
