//! What an environment's description says of the VM that is made of it. Pure. The description is the one in the spec,
//! or that of the name there, once that has been looked up (`recorded`).
//!
//! A description is meant for metal: partitions, scripts that run on a deployed node and the kernel's command line are
//! left out, and that is said. What a VM cannot have is refused.

use serde_json::Value;

use super::decide::pinned;
use crate::{
    api::{ANNOTATION_IMPORT, VmImage, image::ImageFormat},
    config::ON_SERVER,
    driver::kadeploy::environment::{Environment, ImageKind},
    image::{BootPaths, Trouble, TroubleKind},
};

/// Most characters of a line for people: a description may be long.
const LINE: usize = 300;
/// Most characters of a word of it.
const WORD: usize = 60;

fn refused<T>(why: &str) -> Result<T, Trouble> {
    Err(Trouble::refused(TroubleKind::Unusable, format!("spec.source.environment: {why}")))
}

/// The description, as far as it is known.
fn description(image: &VmImage) -> Option<&str> {
    let source = image.spec.source.environment.as_ref()?;
    source.description.as_deref().or_else(|| Some(&pinned(image)?.environment.as_ref()?.description))
}

/// The description, if it is known and is of an environment that can become a VM's disk.
pub(super) fn read(image: &VmImage) -> Result<Option<Environment>, Trouble> {
    let (Some(source), Some(description)) = (&image.spec.source.environment, description(image)) else {
        return Ok(None);
    };
    let described = Environment::from_yaml(description).or_else(|error| refused(&error.to_string()))?;
    let word = &described.image.kind_word;
    match (described.image.kind(), image.spec.format) {
        (ImageKind::Tar, ImageFormat::Tar) | (ImageKind::Dd, ImageFormat::Dd) => {}
        (ImageKind::Tar, _) => return refused(&format!("its image.kind is {word:?}: set spec.format to tar")),
        (ImageKind::Dd, _) => return refused(&format!("its image.kind is {word:?}: set spec.format to dd")),
        (ImageKind::Fsa, _) => {
            return refused("its files are an archive of fsarchiver, which is not read here: save it as a tar archive");
        }
        (ImageKind::Other, _) => return refused(&format!("its image.kind {word:?} is not known: tar or dd")),
    }
    if described.multipart {
        return refused("it is of several partitions: save its root file system as one tar archive, or the disk as dd");
    }
    if let Some(os) = described.os.as_deref().filter(|os| *os != "linux") {
        return refused(&format!("it is of os {os:?}: only linux is started as a VM"));
    }
    if let Some(arch) = described.other.get("arch").filter(|arch| !is_ours(arch)) {
        let arch: String = arch.to_string().chars().take(WORD).collect();
        return refused(&format!(
            "it is of arch {arch}, but VMs are of x86_64: name an environment that is made for x86_64 (or amd64), or \
             correct arch in its description"
        ));
    }
    if source.http.is_none() && source.claim.is_none() && !is_address(&described.image.file) {
        let file = &described.image.file;
        // of what a user describes the site's configuration says nothing
        let site = source.site.as_ref().filter(|_| file.starts_with(ON_SERVER));
        let setting = site.map(|site| {
            let directory = file.rfind('/').map_or(file.as_str(), |slash| &file[..=slash]);
            format!(
                "; or have sites.{site}.kadeploy.files in the chart say where {directory} is on the web, and then set \
                 the annotation {ANNOTATION_IMPORT} to another value"
            )
        });
        return refused(&format!(
            "its image.file {file:?} is no http or https address: put the file on a web server or a claim, and name it with \
             http or claim, without digest beside them{}",
            setting.unwrap_or_default()
        ));
    }
    Ok(Some(described))
}

/// Whether an architecture is the one that VMs have, or is not said.
fn is_ours(arch: &Value) -> bool {
    arch.is_null() || arch.as_str().is_some_and(|arch| matches!(arch, "" | "x86_64" | "amd64"))
}

fn is_address(file: &str) -> bool {
    file.starts_with("http://") || file.starts_with("https://")
}

/// Where the description says that the files are.
pub(super) fn address(image: &VmImage) -> Option<String> {
    let file = Environment::from_yaml(description(image)?).ok()?.image.file;
    is_address(&file).then_some(file)
}

/// What the description says that is started.
pub(super) fn boot(image: &VmImage) -> Option<BootPaths> {
    let boot = read(image).ok()??.boot;
    (boot.kernel.is_some() || boot.initrd.is_some()).then_some(BootPaths { kernel: boot.kernel, initrd: boot.initrd })
}

/// What of the description is not used, a line each.
pub(super) fn unused(image: &VmImage) -> Vec<String> {
    let Ok(Some(described)) = read(image) else { return Vec::new() };
    let mut lines = vec![format!("environment {}", described.id())];
    if let Some(params) = described.boot.kernel_params.filter(|params| !params.is_empty()) {
        let instead = if image.spec.format == ImageFormat::Tar { " (spec.os.params adds to the VM's)" } else { "" };
        lines.push(format!("not used, being for metal: boot.kernel_params {params:?}{instead}"));
    }
    let scripts = described.preinstall.iter().chain(&described.postinstalls).map(|one| one.archive.as_str());
    let scripts: Vec<&str> = scripts.collect();
    if !scripts.is_empty() {
        lines.push(format!("not run, being for metal: {}", scripts.join(", ")));
    }
    if described.destructive {
        lines.push("destructive says nothing of a VM".into());
    }
    lines.into_iter().map(|line| line.chars().take(LINE).collect()).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const DESCRIPTION: &str = "
name: debian12-min
version: 3
os: linux
image: {file: 'https://images.example/debian12.tar.zst', kind: tar, compression: zstd}
postinstalls: [{archive: 'server:///g5k.tgz', compression: gzip, script: g5k --net debian}]
boot: {kernel: /boot/vmlinuz-1, initrd: /boot/initrd-1, kernel_params: console=ttyS1}
destructive: true
filesystem: ext4
";

    fn image(description: &str, rest: &serde_json::Value) -> VmImage {
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut spec =
            json!({"format": "tar", "source": {"environment": {"description": description, "digest": digest}}});
        for (key, value) in rest.as_object().unwrap() {
            spec[key] = value.clone();
        }
        VmImage::new("debian", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_a_vm_can_use_is_used_and_the_rest_is_told() {
        let image = self::image(DESCRIPTION, &json!({}));
        let boot = boot(&image).unwrap();
        assert_eq!((boot.kernel.as_deref(), boot.initrd.as_deref()), (Some("/boot/vmlinuz-1"), Some("/boot/initrd-1")));
        assert_eq!(address(&image).as_deref(), Some("https://images.example/debian12.tar.zst"));
        let told = unused(&image).join("\n");
        for word in ["debian12-min:3", "console=ttyS1", "server:///g5k.tgz", "destructive"] {
            assert!(told.contains(word), "{told}");
        }
        let long = DESCRIPTION.replace("console=ttyS1", &"x".repeat(5000));
        let lines = unused(&self::image(&long, &json!({})));
        assert!(lines.len() == 4 && lines.iter().all(|line| line.chars().count() <= LINE), "{lines:?}");
        let mut other = image;
        other.spec.source = crate::api::image::ImageSource::default();
        assert!(unused(&other).is_empty());
    }

    #[rstest]
    #[case::rubbish("[1, 2]", json!({}), "cannot be read")]
    #[case::no_file("name: x", json!({}), "names no image.file")]
    #[case::another_format("name: x\nimage: {file: 'https://a/b', kind: ddgz}", json!({}), "set spec.format to dd")]
    #[case::archive_as_dd("name: x\nimage: {file: 'https://a/b', kind: tgz}", json!({"format": "dd"}), "set spec.format to tar")]
    #[case::fsa("name: x\nimage: {file: 'https://a/b', kind: fsa1}", json!({}), "fsarchiver")]
    #[case::unknown("name: x\nimage: {file: 'https://a/b', kind: iso}", json!({}), "\"iso\" is not known")]
    #[case::parts("name: x\nimage: {file: 'https://a/b', kind: tar}\nmultipart: true", json!({}), "several partitions")]
    #[case::other("name: x\nimage: {file: 'https://a/b', kind: ddgz}\nos: other", json!({"format": "dd"}), "only linux")]
    #[case::xen("name: x\nimage: {file: 'https://a/b', kind: tar}\nos: xen", json!({}), "only linux")]
    #[case::arch("name: x\nimage: {file: 'https://a/b', kind: tar}\narch: aarch64", json!({}), "of arch \"aarch64\"")]
    #[case::no_arch("name: x\nimage: {file: 'https://a/b', kind: tar}\narch: [1]", json!({}), "is made for x86_64")]
    #[case::elsewhere("name: x\nimage: {file: 'server:///a', kind: tar}", json!({}), "name it with http or claim")]
    fn what_no_vm_can_be_made_of_is_refused_in_words(
        #[case] description: &str,
        #[case] rest: serde_json::Value,
        #[case] words: &str,
    ) {
        let refused = read(&image(description, &rest)).unwrap_err();
        assert!(refused.message.contains(words) && !refused.again, "{refused}");
    }

    #[rstest]
    fn an_environment_of_the_vms_architecture_is_read(#[values("x86_64", "amd64", "''", "", "null")] arch: &str) {
        let description = format!("name: x\nimage: {{file: 'https://a/b', kind: tar}}\narch: {arch}\n");
        assert!(read(&image(&description, &json!({}))).unwrap().is_some());
    }

    #[test]
    fn files_of_the_deployment_server_may_come_from_elsewhere() {
        let mut image = image("name: x\nimage: {file: 'server:///a.tgz', kind: tar}", &json!({}));
        let refused = read(&image).unwrap_err();
        assert!(!refused.message.contains("kadeploy.files"), "the description is the user's own: {refused}");
        let source = image.spec.source.environment.as_mut().unwrap();
        source.claim = serde_json::from_value(json!({"name": "images", "path": "a.tgz"})).unwrap();
        source.digest = None;
        assert!(read(&image).unwrap().is_some());
        assert_eq!(image.spec.source.on_claim().unwrap().path, "a.tgz");
    }
}
