//! The name of an artifact. Pure.

/// `registry/repository:tag` or `registry/repository@sha256:...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) struct Reference {
    pub(in crate::image) registry: String,
    pub(in crate::image) repository: String,
    pub(in crate::image) tag: String,
    /// With it the tag says nothing more.
    pub(in crate::image) digest: Option<String>,
}

impl Reference {
    /// Reads it, or says what is wrong. The schema has looked at the characters already.
    pub(in crate::image) fn read(text: &str) -> Result<Self, String> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        let (registry, path) = rest.split_once('/').ok_or("it names no registry before a /")?;
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, tag),
            None if digest.is_some() => (path, ""),
            None => return Err("it has neither a tag nor a digest".into()),
        };
        let good =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        let host = registry.split_once(':').map_or(registry, |(host, _)| host);
        let named = good(host) && repository.split('/').all(|part| good(part) && !part.starts_with('.'));
        let fixed = digest.as_ref().is_none_or(|digest| {
            digest
                .strip_prefix("sha256:")
                .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        if !named || !fixed || !(tag.is_empty() || good(tag)) {
            return Err("it is not of the form registry/repository:tag or registry/repository@sha256:...".into());
        }
        let (registry, repository, tag) = (registry.to_owned(), repository.to_owned(), tag.to_owned());
        Ok(Self { registry, repository, tag, digest })
    }

    /// Where the registry is spoken to.
    pub(in crate::image) fn server(&self) -> &str {
        // its name is not its address
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn references_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let read = Reference::read(&format!("127.0.0.1:5000/team/disks/debian:12@{digest}")).unwrap();
        assert_eq!(
            (read.registry.as_str(), read.repository.as_str(), read.tag.as_str()),
            ("127.0.0.1:5000", "team/disks/debian", "12")
        );
        assert_eq!(read.digest, Some(digest));
        let read = Reference::read("docker.io/library/debian:12").unwrap();
        assert_eq!((read.server(), &read.digest), ("registry-1.docker.io", &None));
    }

    #[rstest]
    #[case::no_registry("debian:12")]
    #[case::no_tag("registry.example/debian")]
    #[case::a_way_up("registry.example/../debian:12")]
    #[case::a_query("registry.example/debian:12?x")]
    #[case::a_user("me:secret@registry.example/debian:12")]
    #[case::a_short_digest("registry.example/debian@sha256:abc")]
    #[case::no_repository("registry.example/:12")]
    fn what_is_no_reference_is_refused(#[case] text: &str) {
        assert!(Reference::read(text).is_err());
    }
}
