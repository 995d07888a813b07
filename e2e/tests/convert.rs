//! Archives of root file systems, partitions and disks that become images: by the importer, into the repository, to a
//! guest that runs from what it has made; and archives that are refused.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{COUNT, Guests, LIMIT, World, program},
    environment::{Environment, with_mke2fs},
    skipped::skipped,
};
use serde_json::json;
use vmdeploy::{
    api::VmImage,
    controller::image::importer,
    image::{FileOrder, ImportOrder, Outcome, Place, StoredFile},
    names::Identity,
};

const SIZE: u64 = 4 << 30;
const NO_MKE2FS: &str = "this machine's Debian mirror has no newer mke2fs";

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn a_debian_environment_becomes_an_image_and_a_guest_runs_from_it() -> Result<()> {
    let environment = Environment::new()?;
    let mut world = World::new(Guests { members: 1, memory: "192Mi", script: COUNT }, None)?;
    let ways = [("root.tar.xz", "xz -0"), ("root.tar.zst", "zstd -3"), ("root.tar.gz", "gzip -1")];
    for (incarnation, (name, compress)) in (0..).zip(ways) {
        let archive = environment.pack(name, compress)?;
        let Some(importer) = with_mke2fs(program()?)? else {
            return skipped("a_debian_environment_becomes_an_image_and_a_guest_runs_from_it", NO_MKE2FS);
        };
        let outcome = import(&world, &image()?, &archive, &importer)?;
        fs::remove_file(archive)?;
        let Outcome::Imported { disk, virtual_size: SIZE, kernel, initrd, conversion: Some(found), .. } = outcome
        else {
            anyhow::bail!("{outcome:?}")
        };
        eprintln!("{name}: {} bytes\n{}", disk.size, found.log);
        ensure!(found.os.is_some_and(|os| os.starts_with("Debian GNU/Linux 12")), "{}", found.log);
        ensure!(found.log.contains("its guest agent answers after"), "it was not started: {}", found.log);
        if incarnation == 0 {
            // what an importer has started needs no agent to show that it starts
            continue;
        }
        runs(&mut world, &image()?, [Some(disk), kernel, initrd], incarnation)?;
    }
    environment.run("rm root/sbin/init", &[])?;
    let archive = environment.pack("root.tar", "cat")?;
    let importer = with_mke2fs(program()?)?.context("no mke2fs")?;
    let Outcome::Failed(trouble) = import(&world, &image()?, &archive, &importer)? else {
        anyhow::bail!("it is taken without an init")
    };
    let said = &trouble.message;
    ensure!(!trouble.again && said.contains("its kernel panics") && said.contains("skipBootCheck"), "{said}");
    Ok(())
}

/// An image of an environment, described as `kaenv3 -p` does it for metal.
const IMAGE: &str = "
apiVersion: vmdeploy.io/v1alpha1
kind: VmImage
metadata: {name: debian12, namespace: alice, uid: 0e5f}
spec:
  format: tar
  diskSize: 4Gi
  os: {params: quiet}
  source:
    environment:
      claim: {name: environments, path: root.tar}
      description: |
        ---
        name: debian12-min
        version: 2026112700
        description: a minimal system
        author: somebody@example.org
        visibility: private
        destructive: false
        os: linux
        image: {file: server:///images/debian12.tgz, kind: tar, compression: gzip}
        postinstalls:
        - {archive: server:///postinstalls/site.tgz, compression: gzip, script: site-postinstall --net debian}
        boot: {kernel: /boot/vmlinuz-6.1.0-test, initrd: /initrd.img, kernel_params: console=ttyS1}
        filesystem: ext4
        partition_type: 131
        multipart: false
";

fn image() -> Result<VmImage> {
    vmdeploy::yaml::read(IMAGE).map_err(Into::into)
}

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn a_dd_environment_of_a_partition_or_of_a_disk_becomes_an_image_and_a_guest_runs_from_it() -> Result<()> {
    let environment = Environment::new()?;
    environment.disks()?;
    let mut world = World::new(Guests { members: 1, memory: "192Mi", script: COUNT }, None)?;
    let importer = Command::new(program()?);
    let part = described("ddgz", "boot: {kernel: /vmlinuz, initrd: /initrd.img}")?;
    let disk = described("dd", "destructive: true")?;
    for (incarnation, (name, compress, mib, image, words)) in (1..).zip([
        ("part", "gzip -1", 384_u64, part, ["gzip", "its guest agent answers after"]),
        ("disk", "zstd -q -1", 385, disk, ["zstd", "its boot loader"]),
    ]) {
        environment.run(&format!("{compress} < {name} > packed && rm {name}"), &[])?;
        let outcome = import(&world, &image, &environment.path().join("packed"), &importer)?;
        let Outcome::Imported { disk, virtual_size, kernel, initrd, conversion: Some(found), .. } = outcome else {
            anyhow::bail!("{name}: {outcome:?}")
        };
        eprintln!("{name}: {} bytes\n{}", disk.size, found.log);
        ensure!(virtual_size == mib << 20, "{name}: {virtual_size}");
        ensure!(words.iter().all(|word| found.log.contains(word)), "{name}: {}", found.log);
        ensure!([&kernel, &initrd].iter().all(|file| file.is_some() == (name == "part")), "{name}: {kernel:?}");
        runs(&mut world, &image, [Some(disk), kernel, initrd], incarnation)?;
    }
    Ok(())
}

/// An image of a `dd` environment, described as its user has it.
fn described(kind: &str, rest: &str) -> Result<VmImage> {
    let file = format!("{{file: server:///images/debian12.dd, kind: {kind}, compression: gzip}}");
    let description = format!("name: debian12-dd\nos: linux\nimage: {file}\nfilesystem: ext4\n{rest}\n");
    let environment = json!({"description": description, "claim": {"name": "environments", "path": "packed"}});
    Ok(serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": "debian12-dd", "uid": "0e5f"},
        "spec": {"format": "dd", "source": {"environment": environment}},
    }))?)
}

/// Has an importer do what an operator would order; its outcome.
fn import(world: &World, image: &VmImage, archive: &Path, importer: &Command) -> Result<Outcome> {
    let (root, path) = (archive.parent().context("no directory")?, archive.file_name().context("no name")?);
    let place = Place::Beneath { root: root.into(), path: path.to_string_lossy().into() };
    let ordered = importer::order(image);
    let order = ImportOrder { disk: FileOrder { place, ..ordered.disk.clone() }, ..ordered };
    let (work, outcome) = (root.join("work"), root.join("outcome"));
    fs::create_dir_all(&work)?;
    let credentials = world.credentials(&Identity::Importer)?;
    let mut command = world.nodes.command(0, importer.get_program());
    command.args(importer.get_args()).args(["importer", "--repository", &world.repository_address()]);
    command.arg("--credentials").arg(credentials).arg("--work").arg(&work);
    command.arg("--order").arg(serde_json::to_string(&order)?).arg("--outcome").arg(&outcome);
    let output = command.output()?;
    let text = fs::read_to_string(&outcome).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let left: Vec<_> = fs::read_dir(&work)?.collect::<std::io::Result<_>>()?;
    ensure!(left.is_empty(), "files of the import stay: {left:?}");
    Ok(Outcome::read(Some(&text)))
}

/// Runs a guest from what was made: disk, kernel and initial ram disk.
fn runs(world: &mut World, image: &VmImage, made: [Option<StoredFile>; 3], incarnation: u32) -> Result<()> {
    let [disk, kernel, initrd] = made.map(|file| file.map(|file| file.digest));
    world.image.disk = disk.context("no disk")?;
    (world.image.kernel, world.image.initrd) = (kernel, initrd);
    world.image.params = image.spec.params();
    world.nodes.at_the_switch(counts(world, incarnation))
}

async fn counts(world: &World, incarnation: u32) -> Result<()> {
    let agents = world.loaded(incarnation, None).await?;
    let agent = agents.first().context("no agent")?;
    agent.go().await?;
    agent.counts_to(3, LIMIT).await?;
    Ok(())
}

#[ignore = "needs mke2fs 1.47.1: e2e/test --e2e"]
#[test]
fn the_same_archive_makes_the_same_disk_and_bad_ones_leave_nothing() -> Result<()> {
    let environment = Environment::new()?;
    let good = environment.pack("root.tar", "cat")?;
    let Some(sums) = convert(&environment, &good)? else {
        return skipped("the_same_archive_makes_the_same_disk_and_bad_ones_leave_nothing", NO_MKE2FS);
    };
    let sums = sums.map_err(anyhow::Error::msg)?;
    let check = r#"set -e; qemu-img convert -O raw out/disk.qcow2 check.raw; e2fsck -fn check.raw > /dev/null
        ask() { debugfs -R "$1" check.raw 2> /dev/null; }
        ask "stat /srv" | grep -q "User: *1234 *Group: *5678"; ask "stat /srv" | grep -q "Mode: *02750"
        [ "$(ask "cat /etc/hostname")" = localhost ]; [ -z "$(ask "cat /etc/machine-id")" ]
        ask "cat /etc/fstab" | grep -q '^LABEL=root'; [ -z "$(ask "ls /etc/ssh" | grep host)" ]
        cmp out/vmlinuz root/vmlinuz; cmp out/initrd.img root/initrd.img; rm -r check.raw out"#;
    let again = convert(&environment, &good)?.context("no mke2fs")?.map_err(anyhow::Error::msg)?;
    ensure!(sums == again, "the same archive makes another disk");
    environment.run(check, &[])?;

    for (what, script, words) in [
        (
            "a parent",
            "tar -C root -P --transform 's,^etc/hostname,../name,' -cf bad.tar etc/hostname",
            "leads out of the archive",
        ),
        ("an absolute name", "tar -P -cf bad.tar $PWD/root/etc", "begins at the root"),
        ("cut off", "head -c 20000000 root.tar > bad.tar", "ends too early"),
        ("cut off, gzip", "gzip -1 < root.tar | head -c 9000000 > bad.tar", "ends too early"),
        ("a bomb", "truncate -s 8G zeros; tar -cf - zeros | zstd -q -1 > bad.tar; rm zeros", "do not fit"),
        ("no archive", "cp root/vmlinuz bad.tar", "not an archive of tar"),
        ("no kernel", "tar -C root -cf bad.tar etc boot/initrd.img-6.1.0-test", "it has no kernel"),
        ("a loop", "ln -sfn vmlinuz root/vmlinuz; tar -C root -cf bad.tar vmlinuz etc boot; ", "they are a loop"),
        (
            "made for metal",
            "ln -sfn boot/vmlinuz-6.1.0-test root/vmlinuz; cd root; find etc/apt | cpio --quiet -o -H newc | gzip > boot/initrd.img-6.1.0-test; \
             tar -cf ../bad.tar vmlinuz initrd.img etc boot",
            "has no virtio_blk",
        ),
        (
            "no kernel of x86",
            "cd root; cp initrd.img boot/vmlinuz-6.1.0-test; tar -cf ../bad.tar vmlinuz initrd.img etc boot",
            "no bzImage",
        ),
        ("a device", "cd root; mknod srv/sda b 8 0; tar -cf ../bad.tar srv", "is a device node (8:0)"),
    ] {
        environment.run(script, &[]).context(what)?;
        let refused = convert(&environment, &environment.path().join("bad.tar"))?.context("no mke2fs")?;
        let why = refused.err().with_context(|| format!("{what}: not refused"))?;
        ensure!(why.contains(words), "{what}: {why}");
        let left: Vec<_> = fs::read_dir(environment.path().join("out"))?.collect::<std::io::Result<_>>()?;
        ensure!(left.is_empty(), "{what}: files stay: {left:?}");
    }
    Ok(())
}

/// Converts by hand into `out`: the digests of the files, or why not; none if the tool is not to be had here.
fn convert(environment: &Environment, archive: &Path) -> Result<Option<Result<Vec<String>, String>>> {
    let out = environment.path().join("out");
    let Some(mut command) = with_mke2fs(program()?)? else { return Ok(None) };
    let output = command.arg("convert").arg(archive).arg("--to").arg(&out).args(["--size", "4Gi"]).output()?;
    if !output.status.success() {
        return Ok(Some(Err(String::from_utf8_lossy(&output.stderr).into_owned())));
    }
    let sum = |name| Ok(e2e::agents::digest(&fs::read(out.join(name))?));
    let sums: Result<Vec<String>> = ["disk.qcow2", "vmlinuz", "initrd.img"].into_iter().map(sum).collect();
    sums.map(|sums| Some(Ok(sums)))
}
