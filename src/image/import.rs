//! The import itself: fetch, check, give to the repository.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use super::{
    FileOrder, ImportOrder, Outcome, StoredFile, Trouble, TroubleKind, boot_check,
    convert::{self, Conversion, convert},
    fetch::{fetch, oci, stored},
};
use crate::{
    api::image::{DiskFormat, ImageFormat},
    driver::{
        DriverError as _, Retry,
        qemu::img::{Format, inspect_base},
        repository::{ByteStore, DiskRecord, RepositoryError},
    },
};

/// Most time that looking at an image may take.
const INSPECTION: Duration = Duration::from_secs(120);

/// Imports what is ordered; files lie below `work` on their way.
pub async fn import(order: &ImportOrder, store: &dyn ByteStore, work: &Path) -> Outcome {
    let mut order = order.clone();
    let imported = async {
        let pinned = oci::pin(&mut order).await?;
        let mut outcome = try_import(&order, store, work).await?;
        if let Outcome::Imported { manifests, .. } = &mut outcome {
            *manifests = pinned;
        }
        Ok(outcome)
    };
    imported.await.unwrap_or_else(Outcome::Failed)
}

async fn try_import(order: &ImportOrder, store: &dyn ByteStore, work: &Path) -> Result<Outcome, Trouble> {
    match (order.format.disk(), order.disk_size) {
        (Some(_), _) if order.format == ImageFormat::Dd => import_packed(order, store, work).await,
        (Some(format), _) => import_disk(order, format, store, work).await,
        (None, Some(size)) => import_archive(order, size, store, work).await,
        (None, None) => {
            let message = "the order says no size for the disk: the operator is of another version";
            Err(Trouble::passing(TroubleKind::Importer, message))
        }
    }
}

/// Makes a disk of an archive; what is stored are the disk, the kernel and the initial ram disk.
async fn import_archive(
    order: &ImportOrder,
    size: u64,
    store: &dyn ByteStore,
    work: &Path,
) -> Result<Outcome, Trouble> {
    let archive = work.join("archive");
    fetch(&order.disk, &archive).await?;
    let (directory, boot) = (work.to_owned(), order.boot.clone().unwrap_or_default());
    let converted = tokio::task::spawn_blocking(move || {
        let converted = convert(&archive, &directory, size, &boot);
        // what it takes on the disk is needed for the next file
        let _ = std::fs::remove_file(&archive);
        converted
    });
    let mut conversion = converted.await.map_err(|e| Trouble::passing(TroubleKind::Importer, e.to_string()))??;
    check(order, work, &mut conversion).await?;
    let (kernel, initrd) = (made(convert::KERNEL, store, work).await?, made(convert::INITRD, store, work).await?);
    let disk = made(convert::DISK, store, work).await?;
    note(store, &disk, DiskRecord { format: DiskFormat::Qcow2, virtual_size: size }).await;
    Ok(Outcome::Imported {
        disk,
        virtual_size: size,
        kernel: Some(kernel),
        initrd: Some(initrd),
        conversion: Some(conversion),
        manifests: BTreeMap::new(),
    })
}

/// Starts once, if that is ordered, what was made with its kernel.
async fn check(order: &ImportOrder, work: &Path, conversion: &mut Conversion) -> Result<(), Trouble> {
    if let Some(params) = &order.check {
        let seen = boot_check::starts(work, params).await.inspect_err(|_| convert::remove(work))?;
        conversion.log = convert::tail(&[std::mem::take(&mut conversion.log), seen]);
    }
    Ok(())
}

/// Gives a file that was made to the repository.
async fn made(name: &str, store: &dyn ByteStore, work: &Path) -> Result<StoredFile, Trouble> {
    let path = work.join(name);
    let file = stored(&path).await?;
    keep(store, &file, &path).await?;
    Ok(file)
}

/// Unpacks a disk; what is stored is as qcow2, and beside it the kernel and the initial ram disk if they are in it.
async fn import_packed(order: &ImportOrder, store: &dyn ByteStore, work: &Path) -> Result<Outcome, Trouble> {
    let mut kernel = optional(order.kernel.as_ref(), store, &work.join("kernel")).await?;
    let mut initrd = optional(order.initrd.as_ref(), store, &work.join("initrd")).await?;
    let packed = work.join("packed");
    fetch(&order.disk, &packed).await?;
    let (directory, most) = (work.to_owned(), order.disk.limit);
    let boot = kernel.is_none().then(|| order.boot.clone().unwrap_or_default());
    let unpacked =
        tokio::task::spawn_blocking(move || convert::dd::unpack(&packed, &directory, most, boot.as_ref())).await;
    let unpacked = unpacked.map_err(|e| Trouble::passing(TroubleKind::Importer, e.to_string()))??;
    let virtual_size = unpacked.virtual_size;
    let mut conversion = Conversion { os: None, log: unpacked.log };
    if unpacked.has_boot_files {
        check(order, work, &mut conversion).await?;
        kernel = Some(made(convert::KERNEL, store, work).await?);
        initrd = Some(made(convert::INITRD, store, work).await?);
    }
    let disk = made(convert::DISK, store, work).await?;
    note(store, &disk, DiskRecord { format: DiskFormat::Qcow2, virtual_size }).await;
    let conversion = Some(conversion);
    Ok(Outcome::Imported { disk, virtual_size, kernel, initrd, conversion, manifests: BTreeMap::new() })
}

async fn import_disk(
    order: &ImportOrder,
    format: DiskFormat,
    store: &dyn ByteStore,
    work: &Path,
) -> Result<Outcome, Trouble> {
    // small files first: what is wrong with them is known before a large disk is fetched
    let kernel = optional(order.kernel.as_ref(), store, &work.join("kernel")).await?;
    let initrd = optional(order.initrd.as_ref(), store, &work.join("initrd")).await?;
    let path = work.join("disk");
    let disk = fetch(&order.disk, &path).await?;
    let virtual_size = check_disk(order, format, &path).await?;
    keep(store, &disk, &path).await?;
    note(store, &disk, DiskRecord { format, virtual_size }).await;
    Ok(Outcome::Imported { disk, virtual_size, kernel, initrd, conversion: None, manifests: BTreeMap::new() })
}

async fn note(store: &dyn ByteStore, disk: &StoredFile, record: DiskRecord) {
    if let Err(error) = store.note_disk(&disk.digest, &record).await {
        // the next image of this digest is imported once more
        tracing::warn!(%error, digest = disk.digest, "the repository did not note what the disk is");
    }
}

async fn optional(
    order: Option<&FileOrder>,
    store: &dyn ByteStore,
    path: &Path,
) -> Result<Option<StoredFile>, Trouble> {
    let Some(order) = order else { return Ok(None) };
    let file = fetch(order, path).await?;
    keep(store, &file, path).await?;
    Ok(Some(file))
}

async fn keep(store: &dyn ByteStore, file: &StoredFile, path: &Path) -> Result<(), Trouble> {
    tracing::info!(digest = file.digest, size = file.size, "giving a file to the repository");
    store.put_image(&file.digest, path).await.map_err(|error: RepositoryError| Trouble {
        again: !matches!(error.retry(), Retry::Denied),
        ..Trouble::refused(TroubleKind::Repository, error.to_string())
    })?;
    // what it takes on the disk is needed for the next file
    let _ = tokio::fs::remove_file(path).await;
    Ok(())
}

/// Checks that the disk is what the spec says and stands alone; says the size the guest sees.
async fn check_disk(order: &ImportOrder, format: DiskFormat, path: &Path) -> Result<u64, Trouble> {
    let unusable = |why: String| Trouble::refused(TroubleKind::Unusable, why);
    let field = &order.disk.field;
    let (found, virtual_size) = inspect_base(path).await.map_err(|e| unusable(format!("{field}: {e}")))?;
    match (format, found) {
        (DiskFormat::Qcow2, Format::Qcow2) | (DiskFormat::Raw, Format::Raw) => {}
        (wanted, found) => {
            let wanted = match wanted {
                DiskFormat::Qcow2 => "qcow2",
                DiskFormat::Raw => "raw",
            };
            let message = format!(
                "the file of {field} is {found}, but spec.format says {wanted}: correct spec.format or the source"
            );
            return Err(unusable(message));
        }
    }
    if virtual_size == 0 {
        return Err(unusable(format!("the disk of {field} has no bytes: correct the source")));
    }
    opens(path, found).await?;
    Ok(virtual_size)
}

/// Lets QEMU itself look at the disk: a header that is right may still be the head of rubbish.
async fn opens(path: &Path, format: Format) -> Result<(), Trouble> {
    let mut program = tokio::process::Command::new("qemu-img");
    program.args(["info", "--output=json", "-f", &format.to_string()]).arg(path);
    program.kill_on_drop(true).stdin(Stdio::null());
    let late = || Trouble::refused(TroubleKind::Unusable, "qemu-img takes too long to look at the disk");
    let output = tokio::time::timeout(INSPECTION, program.output())
        .await
        .map_err(|_| late())?
        .map_err(|e| Trouble::passing(TroubleKind::Importer, format!("failed to start qemu-img: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::refused(TroubleKind::Unusable, format!("QEMU cannot open the disk: {}", words.trim())))
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
