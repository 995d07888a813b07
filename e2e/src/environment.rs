//! A Debian environment as Kadeploy's users have them: an archive of a root file system with a kernel. Its root is the
//! one of the test bed's guest, to which a machine's own files are added.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::agents::guest_image;

/// Makes the tree `root`. `$1` is the guest image.
const TREE: &str = r#"set -e
qemu-img convert -q -O raw "$1/disk.qcow2" disk.raw
mkdir root; debugfs -R "rdump / root" disk.raw > /dev/null 2>&1; rm disk.raw; rmdir root/lost+found
version=6.1.0-test
cp "$1/vmlinuz" root/boot/vmlinuz-$version; cp "$1/initrd" root/boot/initrd.img-$version
ln -s boot/vmlinuz-$version root/vmlinuz; ln -s boot/initrd.img-$version root/initrd.img
echo '/dev/sda5 / ext4 defaults 0 1' > root/etc/fstab; echo griffon-1 > root/etc/hostname
echo 0123456789abcdef0123456789abcdef > root/etc/machine-id
mkdir -p root/etc/ssh; echo secret > root/etc/ssh/ssh_host_ed25519_key
chown 1234:5678 root/srv; chmod 2750 root/srv
mkdir -p root/dev; mknod root/dev/sda b 8 0
"#;

/// Makes of the tree the bytes of a partition, `part`, and those of a disk with this partition, `disk`, that GRUB
/// starts.
const DISKS: &str = r#"set -e
truncate -s 384M part; mke2fs -q -F -t ext4 -m 0 -d root part
cat > grub.cfg << END
set root=(hd0,msdos1)
linux /vmlinuz root=/dev/vda1 console=ttyS0 quiet
initrd /initrd.img
boot
END
grub-mkimage -O i386-pc -p /boot/grub -c grub.cfg -o core.img biosdisk part_msdos ext2 linux
put() { dd of=disk conv=notrunc status=none "$@"; }
truncate -s 385M disk
head -c 440 /usr/lib/grub/i386-pc/boot.img | put
# the table: of Linux, from sector 2048 on, 786432 sectors
printf '\x80\0\0\0\x83\0\0\0\0\x08\0\0\0\0\x0c\0' | put bs=1 seek=446
printf '\x55\xaa' | put bs=1 seek=510
put if=core.img bs=512 seek=1
put if=part bs=1M seek=1 conv=notrunc,sparse
"#;

/// An environment on its way.
pub struct Environment {
    directory: tempfile::TempDir,
}

impl Environment {
    /// Makes one from the guest that the test bed's preparation has made.
    pub fn new() -> Result<Self> {
        Self::of(&guest_image()?)
    }

    /// Makes one from a guest in a directory.
    pub fn of(guest: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("vmdeploy-e2e-").tempdir_in("/var/tmp")?;
        let made = Self { directory };
        made.run(TREE, &[guest.as_os_str()])?;
        Ok(made)
    }

    /// Where all lies; the tree is `root`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a script there.
    pub fn run(&self, script: &str, arguments: &[&OsStr]) -> Result<()> {
        let mut command = Command::new("bash");
        command.current_dir(self.path()).args(["-c", script, "environment"]).args(arguments);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Makes the bytes of a partition, `part`, and of a whole disk, `disk`, of the tree as it is now.
    pub fn disks(&self) -> Result<()> {
        self.run(DISKS, &[])
    }

    /// Packs the tree as it is now, with a program that compresses.
    pub fn pack(&self, name: &str, compress: &str) -> Result<PathBuf> {
        let script = format!("set -o pipefail; tar -C root --numeric-owner --xattrs -cf - . | {compress} > {name}");
        self.run(&script, &[])?;
        Ok(self.path().join(name))
    }
}

/// A command that is run where `mke2fs` is the one of the container image; none if it is not to be had here.
pub fn with_mke2fs(program: impl AsRef<OsStr>) -> Result<Option<Command>> {
    /// What the script says where there is no mirror with it.
    const NONE: i32 = 3;
    let e2fs = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/e2fs");
    let status = Command::new(&e2fs).status().with_context(|| e2fs.display().to_string())?;
    if status.code() == Some(NONE) {
        return Ok(None);
    }
    ensure!(status.success(), "{}: {status}", e2fs.display());
    let mut command = Command::new(e2fs);
    command.arg(program);
    Ok(Some(command))
}
