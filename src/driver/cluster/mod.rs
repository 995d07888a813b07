//! The Kubernetes writes a controller makes: one small trait, the kube client, a double in memory.
