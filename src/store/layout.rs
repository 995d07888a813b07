//! Names in the directory store. Pure; every name that comes from outside is checked here, so that no
//! path can leave the root.
//!
//! ```text
//! lock                                   held by the serving process
//! bucket                                 of which bucket it is a cache; there it is owner.json, and the rest alike
//! staging/<number>                       being received; worthless after a crash
//! trash/<number>                         being removed
//! images/<sha256>
//! images/<sha256>.damaged                was read and is not what its name says; for a person to look at
//! images/<sha256>.json                   format and size as a disk, once an import has checked it
//! images/<sha256>.unnamed                since when nothing names it
//! images/<sha256>.pieces                 the names of its pieces: made again from the image when they are lost
//! jobs/<uid>/record.json                 fence, highest number
//! jobs/<uid>/generations/<n>/manifest.json
//! jobs/<uid>/generations/<n>/i<incarnation>.m<member>.<kind>.<size>.<blake3>[.recipe]
//! jobs/<uid>/generations/<n>/i<incarnation>.m<member>.part.json
//! jobs/<uid>/packs/<name>                blocks of files that are recipes
//! jobs/<uid>/packs/<name>.damaged        was read and is not what its name says; for a person to look at
//! jobs/<uid>/blocks                      where each block is: made again from the packs when it is lost
//! jobs/<uid>/outputs/m<member>.<base64url of the path>
//! ```

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    admission::no_such_uid,
    manifest::{FileForm, FileKind, PartFile, is_digest, is_uid},
    pack::PackName,
};
use crate::names::{Generation, Incarnation, JobUid, MemberIndex};

/// Name of the lock file.
pub const LOCK: &str = "lock";
/// Name of the file that says of which bucket a directory is a cache.
pub const BUCKET: &str = "bucket";
/// Directory of files being received.
pub const STAGING: &str = "staging";
/// Directory of what is being removed.
pub const TRASH: &str = "trash";
/// Directory of the images.
pub const IMAGES: &str = "images";
/// Extension of an image that is not what its name says.
pub const DAMAGED: &str = "damaged";
/// Extension of the names of an image's pieces.
const IMAGE_PIECES: &str = "pieces";
/// Directory of the jobs.
pub const JOBS: &str = "jobs";
/// Directory of the generations in a job's.
pub const GENERATIONS: &str = "generations";
/// Extension of a file that is a recipe.
const RECIPE: &str = "recipe";
/// Name of a generation's manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of a job's record.
pub const RECORD: &str = "record.json";
/// Name of what says where each block of a job is.
const BLOCKS: &str = "blocks";
/// Directory of the packs in a job's.
const PACKS: &str = "packs";
/// Directory of the outputs in a job's.
const OUTPUTS: &str = "outputs";
/// Longest path in a guest that an output is kept under: its coded form must be a file name.
pub const MAX_OUTPUT_PATH: usize = 180;

/// A name that cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadName(pub String);

/// Directory of a job.
pub fn job(job: &JobUid) -> Result<PathBuf, BadName> {
    if is_uid(job) { Ok(PathBuf::from(JOBS).join(&job.0)) } else { Err(BadName(no_such_uid(job))) }
}

/// Where the record of a job is.
pub fn record(uid: &JobUid) -> Result<PathBuf, BadName> {
    Ok(job(uid)?.join(RECORD))
}

/// Directory of the generations of a job.
pub fn generations(uid: &JobUid) -> Result<PathBuf, BadName> {
    Ok(job(uid)?.join(GENERATIONS))
}

/// Directory of one generation.
pub fn generation(uid: &JobUid, number: Generation) -> Result<PathBuf, BadName> {
    Ok(generations(uid)?.join(number.to_string()))
}

/// Directory of the outputs of a job.
pub fn outputs(uid: &JobUid) -> Result<PathBuf, BadName> {
    Ok(job(uid)?.join(OUTPUTS))
}

/// Directory of the packs of a job.
pub fn packs(uid: &JobUid) -> Result<PathBuf, BadName> {
    Ok(job(uid)?.join(PACKS))
}

/// Path of a pack of a job.
pub fn pack(uid: &JobUid, name: PackName) -> Result<PathBuf, BadName> {
    Ok(packs(uid)?.join(name.to_string()))
}

/// Where it is kept in which packs a job's blocks are.
pub fn blocks(uid: &JobUid) -> Result<PathBuf, BadName> {
    Ok(job(uid)?.join(BLOCKS))
}

/// Path of an image by its digest, `sha256:<hex>`.
pub fn image(digest: &str) -> Result<PathBuf, BadName> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if is_digest(hex) => Ok(PathBuf::from(IMAGES).join(hex)),
        _ => Err(BadName("an image is named sha256: and 64 hexadecimal digits".into())),
    }
}

/// Where an image is put that is not what its name says.
pub fn damaged_image(digest: &str) -> Result<PathBuf, BadName> {
    Ok(image(digest)?.with_extension(DAMAGED))
}

/// Where it is kept what an image is as a disk.
pub fn disk_record(digest: &str) -> Result<PathBuf, BadName> {
    Ok(image(digest)?.with_extension("json"))
}

/// Where it is kept since when nothing names an image.
pub fn unnamed_image(digest: &str) -> Result<PathBuf, BadName> {
    Ok(image(digest)?.with_extension("unnamed"))
}

/// Where the names of an image's pieces are kept.
pub fn image_pieces(digest: &str) -> Result<PathBuf, BadName> {
    Ok(image(digest)?.with_extension(IMAGE_PIECES))
}

/// The digest of an image by its name in the directory of images.
pub fn parse_image_name(name: &str) -> Option<String> {
    is_digest(name).then(|| format!("sha256:{name}"))
}

/// The name of an image by the bytes of its SHA-256.
pub fn image_name(sha256: &[u8]) -> String {
    let mut name = String::from("sha256:");
    for byte in sha256 {
        // writing to a String cannot fail
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The names of a path below the root.
fn names(below: &Path) -> Vec<&str> {
    below.iter().filter_map(|name| name.to_str()).collect()
}

/// Whether a file is made again from others when it is lost.
pub fn is_derived(below: &Path) -> bool {
    match names(below)[..] {
        [JOBS, _, BLOCKS] => true,
        [IMAGES, name] => name.ends_with(&format!(".{IMAGE_PIECES}")),
        _ => false,
    }
}

/// Whether a file is a note: small, and read again and again.
pub fn is_note(below: &Path) -> bool {
    match names(below)[..] {
        [IMAGES, name] => name.contains('.') && !name.ends_with(DAMAGED) && !is_derived(below),
        [JOBS, _, RECORD] => true,
        [JOBS, _, GENERATIONS, _, name] => {
            name == MANIFEST || matches!(PartName::parse(name), Some(PartName::Record { .. }))
        }
        _ => false,
    }
}

/// Whether a note decides what is accepted, or what is complete.
pub fn decides(below: &Path) -> bool {
    matches!(names(below)[..], [JOBS, _, RECORD] | [JOBS, _, GENERATIONS, _, MANIFEST])
}

/// Whether a file's name says what is in it, so that it never changes.
pub fn is_fixed(below: &Path) -> bool {
    match names(below)[..] {
        [IMAGES, name] => is_digest(name),
        [JOBS, _, PACKS, name] => name.parse::<PackName>().is_ok(),
        [JOBS, _, GENERATIONS, _, name] => matches!(PartName::parse(name), Some(PartName::File { .. })),
        _ => false,
    }
}

/// A file of a generation that is not its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartName {
    /// Bytes of a part.
    File {
        /// The incarnation it was captured in.
        incarnation: Incarnation,
        /// The member.
        member: MemberIndex,
        /// What it is.
        kind: FileKind,
        /// How it is stored.
        form: FileForm,
        /// Size on the node.
        size: u64,
        /// BLAKE3 of the stored bytes.
        digest: String,
    },
    /// What the manifest will say of a part whose bytes are all here.
    Record {
        /// The incarnation it was captured in.
        incarnation: Incarnation,
        /// The member.
        member: MemberIndex,
    },
}

impl PartName {
    /// The name of a file of a part.
    pub fn of_file(incarnation: Incarnation, member: MemberIndex, file: &PartFile) -> Self {
        Self::File {
            incarnation,
            member,
            kind: file.kind,
            form: file.form,
            size: file.size,
            digest: file.digest.clone(),
        }
    }

    /// The incarnation it belongs to.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Self::File { incarnation, .. } | Self::Record { incarnation, .. } => *incarnation,
        }
    }

    /// Whether both are files of one kind of the same part.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::File { incarnation, member, kind, .. },
                Self::File { incarnation: its_incarnation, member: its_member, kind: its_kind, .. },
            ) => (incarnation, member, kind) == (its_incarnation, its_member, its_kind),
            _ => false,
        }
    }

    /// Reads a name in a generation's directory.
    pub fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('.');
        let incarnation = words.next()?.strip_prefix('i')?.parse().ok()?;
        let member = words.next()?.strip_prefix('m')?.parse().ok()?;
        let mut rest: Vec<&str> = words.collect();
        let form = if rest.last() == Some(&RECIPE) { FileForm::Recipe } else { FileForm::Whole };
        rest.truncate(rest.len() - usize::from(form == FileForm::Recipe));
        match rest.as_slice() {
            ["part", "json"] if form == FileForm::Whole => Some(Self::Record { incarnation, member }),
            [kind, size, digest] if is_digest(digest) => Some(Self::File {
                incarnation,
                member,
                kind: kind.parse().ok()?,
                form,
                size: size.parse().ok()?,
                digest: (*digest).to_owned(),
            }),
            _ => None,
        }
    }
}

impl std::fmt::Display for PartName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { incarnation, member, kind, form, size, digest } => {
                write!(f, "i{incarnation}.m{member}.{kind}.{size}.{digest}")?;
                match form {
                    FileForm::Whole => Ok(()),
                    FileForm::Recipe => write!(f, ".{RECIPE}"),
                }
            }
            Self::Record { incarnation, member } => write!(f, "i{incarnation}.m{member}.part.json"),
        }
    }
}

/// File name of an output.
pub fn output_name(member: MemberIndex, path: &str) -> Result<String, BadName> {
    if path.is_empty() || path.len() > MAX_OUTPUT_PATH {
        return Err(BadName(format!("an output's path has 1 to {MAX_OUTPUT_PATH} bytes")));
    }
    Ok(format!("m{member}.{}", URL_SAFE_NO_PAD.encode(path)))
}

/// Member and path of an output's file name.
pub fn parse_output_name(name: &str) -> Option<(MemberIndex, String)> {
    let (member, path) = name.split_once('.')?;
    let path = URL_SAFE_NO_PAD.decode(path).ok().and_then(|p| String::from_utf8(p).ok())?;
    Some((member.strip_prefix('m')?.parse().ok()?, path))
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_survive_writing_and_reading() {
        let file = |form| PartName::File {
            incarnation: 3,
            member: 12,
            kind: FileKind::Memory,
            form,
            size: 268_435_456,
            digest: "ab".repeat(32),
        };
        for name in [file(FileForm::Whole), file(FileForm::Recipe), PartName::Record { incarnation: 3, member: 0 }] {
            assert_eq!(PartName::parse(&name.to_string()), Some(name));
        }
        let name = output_name(1, "/data/out.txt").unwrap();
        assert_eq!(parse_output_name(&name), Some((1, "/data/out.txt".into())));
        assert_eq!(PartName::parse(MANIFEST), None);
        assert_eq!(image_name(&[0x0f, 0xa5]), "sha256:0fa5");
    }

    #[test]
    fn every_file_that_a_bucket_has_is_of_one_sort() {
        let (job, digest) = (JobUid("3f2b8a10".into()), format!("sha256:{}", "ab".repeat(32)));
        let part = |form| {
            let (incarnation, member, kind, size, digest) = (3, 1, FileKind::Disk, 5, "ab".repeat(32));
            generation(&job, 7)
                .unwrap()
                .join(PartName::File { incarnation, member, kind, form, size, digest }.to_string())
        };
        let pack = pack(&job, PackName([3; 32])).unwrap();
        let fixed = [part(FileForm::Whole), part(FileForm::Recipe), pack.clone(), image(&digest).unwrap()];
        let decide = [record(&job).unwrap(), generation(&job, 7).unwrap().join(MANIFEST)];
        let note = PartName::Record { incarnation: 3, member: 0 }.to_string();
        let other_notes =
            [disk_record(&digest).unwrap(), unnamed_image(&digest).unwrap(), generation(&job, 7).unwrap().join(note)];
        // the path of an output may be anything
        let output = outputs(&job).unwrap().join("m0.json");
        let changing = [output, damaged_image(&digest).unwrap(), pack.with_extension(DAMAGED)];
        let sorts = |path: &PathBuf| [is_fixed(path), is_note(path), decides(path), is_derived(path)];
        assert!(fixed.iter().all(|path| sorts(path) == [true, false, false, false]));
        assert!(decide.iter().all(|path| sorts(path) == [false, true, true, false]));
        assert!(other_notes.iter().all(|path| sorts(path) == [false, true, false, false]));
        assert!(changing.iter().all(|path| sorts(path) == [false; 4]), "{changing:?}");
        assert_eq!(sorts(&blocks(&job).unwrap()), [false, false, false, true]);
    }

    proptest! {
        #[test]
        fn no_name_leaves_the_root(text in "\\PC{0,80}", dots in "[./\\\\a]{0,12}") {
            for text in [text, dots] {
                let uid = JobUid(text.clone());
                let built = [job(&uid), image(&text), output_name(0, &text).map(PathBuf::from)];
                for path in built.into_iter().flatten() {
                    prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                    prop_assert!(path.components().count() <= 2);
                }
                if let Some(name) = PartName::parse(&text) {
                    prop_assert!(!name.to_string().contains('/'));
                }
            }
        }
    }
}
