//! The manifest of an artifact: which of its layers is the file. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The kinds of manifest that can be told apart.
pub(super) const KINDS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";
/// What tells of a layer by which name its file goes.
const TITLE: &str = "org.opencontainers.image.title";
/// The type of what stands for a file where there is none: an artifact without files has one layer of it.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Most names that are shown.
const SHOWN: usize = 5;

/// What a registry has under a name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Manifest {
    layers: Vec<Layer>,
}

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layer {
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
}

impl Manifest {
    /// Reads it, or says why it is none.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        if let Ok(index) = serde_json::from_slice::<Index>(text) {
            let named: Vec<String> = index.manifests.into_iter().take(SHOWN).map(|entry| entry.digest).collect();
            return Err(format!("it names an index of several manifests: name one of them (@{})", named.join(", @")));
        }
        let read = serde_json::from_slice::<Self>(text);
        let mut manifest = read.map_err(|error| format!("its manifest cannot be read: {error}"))?;
        manifest.layers.retain(|layer| layer.media_type != EMPTY);
        Ok(manifest)
    }

    /// The layer of this title, or the only one.
    pub(super) fn layer(&self, title: Option<&str>) -> Result<&Layer, String> {
        let titled = |layer: &&Layer| title.is_none_or(|title| layer.title() == Some(title));
        let mut found = self.layers.iter().filter(titled);
        match (found.next(), found.next(), title) {
            (Some(layer), None, _) if layer.is_named() => Ok(layer),
            (Some(layer), None, _) => Err(format!("its layer is named {:?}, which is no sha256 digest", layer.digest)),
            (None, _, None) => Err("it has no layer, so there is no file in it".into()),
            (Some(_), Some(_), None) => Err(format!("it has several layers: say in file which one: {}", self.titles())),
            (None, _, Some(title)) => Err(format!("it has no file {title:?}, but: {}", self.titles())),
            (Some(_), Some(_), Some(title)) => Err(format!("it has several files of the name {title:?}")),
        }
    }

    fn titles(&self) -> String {
        let titles: Vec<&str> = self.layers.iter().filter_map(Layer::title).take(SHOWN).collect();
        if titles.is_empty() { format!("layers without the annotation {TITLE}") } else { titles.join(", ") }
    }
}

impl Layer {
    fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    /// Its name becomes a part of an address.
    fn is_named(&self) -> bool {
        let hex = self.digest.strip_prefix("sha256:");
        hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// Of `{}`.
    const EMPTY_DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn layer(title: Option<&str>) -> Value {
        let annotations = title.map_or(json!({}), |title| json!({TITLE: title}));
        json!({"mediaType": "application/octet-stream", "digest": format!("sha256:{}", "a".repeat(64)), "size": 7,
            "annotations": annotations})
    }

    fn read(value: &Value) -> Result<Manifest, String> {
        Manifest::read(&serde_json::to_vec(value).unwrap())
    }

    #[rstest]
    #[case::the_only_one(json!([layer(None)]), None)]
    #[case::the_named_one(json!([layer(Some("a")), layer(Some("b"))]), Some("b"))]
    fn a_layer_is_chosen(#[case] layers: Value, #[case] title: Option<&str>) {
        let manifest = read(&json!({"schemaVersion": 2, "config": {}, "layers": layers})).unwrap();
        assert_eq!(manifest.layer(title).unwrap().size, 7);
    }

    #[rstest]
    #[case::none(json!([]), None, "no layer")]
    #[case::none_as_oras_pushes_it(json!([{"mediaType": EMPTY, "digest": EMPTY_DIGEST, "size": 2, "data": "e30="}]), None, "no layer")]
    #[case::several(json!([layer(Some("a")), layer(Some("b"))]), None, "say in file which one: a, b")]
    #[case::without_names(json!([layer(None), layer(None)]), None, "without the annotation")]
    #[case::another(json!([layer(Some("a"))]), Some("c"), "no file \"c\", but: a")]
    #[case::twice(json!([layer(Some("a")), layer(Some("a"))]), Some("a"), "several files")]
    #[case::a_digest_that_leads_elsewhere(json!([{"digest": "../../secret", "size": 1}]), None, "no sha256 digest")]
    fn what_is_wrong_is_said(#[case] layers: Value, #[case] title: Option<&str>, #[case] words: &str) {
        let why = read(&json!({"layers": layers})).unwrap().layer(title).unwrap_err();
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn an_index_and_rubbish_are_refused() {
        let why = read(&json!({"manifests": [{"digest": "sha256:1"}, {"digest": "sha256:2"}]})).unwrap_err();
        assert!(why.contains("name one of them (@sha256:1, @sha256:2)"), "{why}");
        assert!(Manifest::read(b"<html>").unwrap_err().contains("cannot be read"));
    }
}
