//! The description of an environment, as `kaenv` files and the server have it. Pure.
//!
//! It is a stranger's text. Fields that are not known here are kept, so that a description that is passed on loses
//! nothing: newer servers have more of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{EnvironmentName, KadeployError, names};
use crate::yaml;

/// Longest description that is read.
const LONGEST: usize = 1 << 20;

/// An environment: a system's files, and how they are put on a disk and started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(deserialize_with = "number", skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whose it is, where the server says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `private`, `shared` or `public`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// Whether what is on the disk does not survive it.
    pub destructive: bool,
    /// `linux`, `xen` or `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The files.
    pub image: Image,
    /// What runs before the files are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preinstall: Option<Script>,
    /// What runs on the written files.
    #[serde(deserialize_with = "or_none", skip_serializing_if = "Vec::is_empty")]
    pub postinstalls: Vec<Script>,
    /// How it is started.
    #[serde(deserialize_with = "or_none")]
    pub boot: Boot,
    /// The file system the files are put on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// Whether the image is of several partitions.
    pub multipart: bool,
    /// All else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// The files of an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// Where they are: `http(s)://`, `server:///path` on the deployment server, or a path.
    pub file: String,
    /// The server's word for their format; see [`Image::kind`].
    #[serde(rename = "kind")]
    pub kind_word: String,
    /// The server's word for their compression, a claim: see [`Image::compression`].
    #[serde(rename = "compression")]
    pub compression_word: String,
    /// All else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Format of an environment's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// An archive of a root file system.
    Tar,
    /// The bytes of a partition or disk.
    Dd,
    /// An archive of the `fsarchiver`.
    Fsa,
    /// One that is not known here.
    Other,
}

impl Image {
    /// The format, also of its short words (`tgz`, `ddxz`, `fsa3`).
    pub fn kind(&self) -> ImageKind {
        match self.kind_word.as_str() {
            "tar" | "tgz" | "tbz2" | "txz" => ImageKind::Tar,
            "dd" | "ddgz" | "ddbz2" | "ddxz" => ImageKind::Dd,
            word if word.starts_with("fsa") => ImageKind::Fsa,
            _ => ImageKind::Other,
        }
    }

    /// The compression that the description claims; the file's first bytes are the truth.
    pub fn compression(&self) -> &str {
        match self.kind_word.as_str() {
            "tgz" | "ddgz" => "gzip",
            "tbz2" | "ddbz2" => "bzip2",
            "txz" | "ddxz" => "xz",
            _ => &self.compression_word,
        }
    }
}

/// A script with its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// Where the archive is.
    pub archive: String,
    /// Its compression.
    pub compression: String,
    /// What is run of it.
    #[serde(deserialize_with = "or_none")]
    pub script: String,
}

/// How an environment is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Boot {
    /// Path of the kernel within the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Path of the initial ram disk within the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line, often of the metal it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_params: Option<String>,
    /// All else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Environment {
    /// Reads the description in a `kaenv` file.
    pub fn from_yaml(text: &str) -> Result<Self, KadeployError> {
        let wrong = |why: &str| KadeployError::Refused(format!("the environment's description {why}"));
        if text.len() > LONGEST {
            return Err(wrong("is longer than 1Mi"));
        }
        let environment: Self = yaml::read(text).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        environment.check()?;
        Ok(environment)
    }

    /// What a server needs of it. Whether it has the fields that its format needs is for the server to say.
    pub fn check(&self) -> Result<(), KadeployError> {
        self.id().check()?;
        if self.image.file.is_empty() {
            return Err(KadeployError::Refused(format!("the environment {} names no image.file", self.name)));
        }
        Ok(())
    }

    /// By what it is found again.
    pub fn id(&self) -> EnvironmentName {
        EnvironmentName { name: self.name.clone(), user: self.user.clone(), version: self.version }
    }

    /// Whether the server can fetch its files by itself: for a description that is sent along.
    pub(super) fn check_inline(&self) -> Result<(), KadeployError> {
        self.check()?;
        names::address("the environment's image.file", &self.image.file)
    }
}

pub(super) fn number<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    match Value::deserialize(input)? {
        Value::Null => Ok(None),
        Value::String(text) => text.trim().parse().map(Some).map_err(serde::de::Error::custom),
        Value::Number(number) => number.as_u64().map(Some).ok_or_else(|| serde::de::Error::custom("no version")),
        other => Err(serde::de::Error::custom(format!("{other} is no version"))),
    }
}

pub(super) fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: &str = r"
---
name: debian12-min
alias: debian12-min
arch: x86_64
version: '2026081408'
description: debian 12 minimal
author: support@example.org
visibility: public
destructive: false
os: linux
image: {file: 'server:///grid5000/images/debian12-min.tar.zst', kind: tar, compression: zstd}
postinstalls:
- archive: server:///grid5000/postinstalls/g5k-postinstall.tgz
  compression: gzip
  script: g5k-postinstall --net debian --disk-aliases
boot: {kernel: /vmlinuz, initrd: /initrd.img, kernel_params: modprobe.blacklist=nouveau, hypervisor: /xen}
filesystem: ext4
partition_type: 131
multipart: false
custom_variables: {a: b}
";

    #[test]
    fn nothing_of_a_description_is_lost() {
        let environment = Environment::from_yaml(TODAY).unwrap();
        assert_eq!(environment.id().to_string(), "debian12-min:2026081408");
        assert_eq!((environment.image.kind(), environment.image.compression()), (ImageKind::Tar, "zstd"));
        assert_eq!(environment.postinstalls[0].script, "g5k-postinstall --net debian --disk-aliases");
        let sent: serde_json::Value = serde_json::to_value(&environment).unwrap();
        for (field, value) in [("arch", "x86_64"), ("alias", "debian12-min"), ("author", "support@example.org")] {
            assert_eq!(sent[field], value);
        }
        assert_eq!((&sent["partition_type"], &sent["custom_variables"]["a"]), (&131.into(), &"b".into()));
        assert_eq!(sent["boot"]["hypervisor"], "/xen");
        assert_eq!(serde_json::from_value::<Environment>(sent).unwrap(), environment);
    }

    #[test]
    fn short_words_of_formats_are_known() {
        let image = |word: &str| Image { kind_word: word.into(), ..Image::default() };
        assert_eq!((image("tgz").kind(), image("tgz").compression()), (ImageKind::Tar, "gzip"));
        assert_eq!((image("ddxz").kind(), image("ddxz").compression()), (ImageKind::Dd, "xz"));
        assert_eq!((image("fsa3").kind(), image("iso").kind()), (ImageKind::Fsa, ImageKind::Other));
    }

    #[test]
    fn what_is_no_description_is_refused_in_words() {
        let long = format!("name: {}", "x".repeat(LONGEST));
        for (text, words) in [
            ("name: x", "names no image.file"),
            ("name: [1]", "cannot be read"),
            ("name: x\nversion: new", "cannot be read"),
            ("name: a b\nimage: {file: /x}", "must begin with a letter"),
            (&long, "longer than 1Mi"),
        ] {
            let error = Environment::from_yaml(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let local = Environment::from_yaml("name: x\nimage: {file: /home/alice/x.tgz}").unwrap();
        assert!(local.check_inline().unwrap_err().to_string().contains("can fetch"));
    }
}
