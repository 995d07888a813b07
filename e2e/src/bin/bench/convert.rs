//! Archives made into images, beside `mke2fs` itself, which reads archives: without a look at what is in them, without
//! kernel and initial ram disk, and without what belongs to one machine left out.

mod needs;

use std::{ops::RangeInclusive, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{cache, program},
    environment::{Environment, with_mke2fs},
};
use vmdeploy::image::convert::{DISK, INITRD, KERNEL};

use self::needs::{Needs, on_disk};
use crate::report::{Figure, Measured, figure};

const RUNS: usize = 5;
/// Runs whose needs are looked at, which costs some of their time.
const LOOKED_AT: usize = 3;
/// The archive of these.
const ARCHIVE: &str = "root.tar.zst";
const COMPRESS: &str = "zstd -10 -T2";
/// Where it goes, and what it is.
const OUT: &str = "out";
const RESULT: [&str; 3] = [DISK, KERNEL, INITRD];
const MIB: f64 = 1_048_576.0;
/// MiB of an environment like those that sites offer.
const SIZE: RangeInclusive<f64> = 300.0..=450.0;
const BEST: &str = "mke2fs -q -F -t ext4 -L root -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d \"$1\" best.raw 10G && \
    qemu-img convert -q -f raw -O qcow2 best.raw best.qcow2";

/// Measures.
pub(crate) fn measure() -> Result<Measured> {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let environment = Environment::new()?;
    let small = mebibytes(&environment)?;
    let of_small = needs(&environment, &environment.pack(ARCHIVE, COMPRESS)?)?;
    // a second root makes it as large as the environments that sites offer
    let agents = cache()?.join("agent");
    let script = "mkdir -p root/srv/second; \
        for t in \"$1\"/*.tar; do tar -C root/srv/second --exclude './dev/*' -xf \"$t\"; done";
    environment.run(script, &[agents.as_os_str()])?;
    let size = mebibytes(&environment)?;
    eprintln!("  the environment has {size:.0} MiB");
    ensure!(SIZE.contains(&size), "the environment has {size:.0} MiB, not {SIZE:?} as those that sites offer");
    let note = Some("what du says of its tree: 300 to 450, else nothing is measured");
    measured.figures.extend(figure("environment_mib", &[size], 0.5, "MiB", None, note));
    for (name, compress, seconds, ratio, goal) in [
        (ARCHIVE, COMPRESS, "convert_zst_s", "convert_vs_best", Some(1.3)),
        ("root.tar.gz", "gzip", "convert_gz_s", "convert_gz_vs_best", Some(1.3)),
        ("root.tar", "cat", "convert_tar_s", "convert_tar_vs_best", None),
    ] {
        let archive = environment.pack(name, compress)?;
        let (mut ours, mut ratios) = (Vec::new(), Vec::new());
        // in turns, so that both meet the same machine
        for run in 0..RUNS {
            let best = timed(
                environment.path(),
                with_mke2fs("sh")?.context("no newer mke2fs")?.args(["-c", BEST, "best"]).arg(&archive),
            )?;
            let own = timed(environment.path(), &mut conversion(&archive)?)?;
            eprintln!("  {name} run {run}: ours {own:.2} s, mke2fs and qemu-img {best:.2} s");
            ours.push(own);
            ratios.push(own / best);
        }
        let figures: [Option<Figure>; 2] = [
            figure(seconds, &ours, 0.5, "s", None, Some("to disk, kernel and initial ram disk")),
            figure(ratio, &ratios, 0.5, "ratio", goal, Some("beside mke2fs -d and qemu-img")),
        ];
        measured.figures.extend(figures.into_iter().flatten());
    }
    let of_all = needs(&environment, &environment.path().join(ARCHIVE))?;
    let memory = |needs: &[Needs]| -> Vec<f64> { needs.iter().map(|needs| needs.memory as f64 / MIB).collect() };
    let scratch: Vec<f64> = of_all.iter().map(|needs| needs.scratch as f64 / MIB / size).collect();
    let together = "the most that all its processes have together; an importer may have 512";
    let figures: [Option<Figure>; 4] = [
        figure("convert_rss_mib", &memory(&of_all), 1.0, "MiB", None, Some(together)),
        figure("environment_small_mib", &[small], 0.5, "MiB", None, Some("what du says of a smaller tree")),
        figure("convert_small_rss_mib", &memory(&of_small), 1.0, "MiB", None, Some("with that one")),
        figure("convert_scratch_share", &scratch, 1.0, "ratio", None, Some("disk beside archive and result, in trees")),
    ];
    measured.figures.extend(figures.into_iter().flatten());
    Ok(measured)
}

/// Our conversion, to the directory [`OUT`].
fn conversion(archive: &Path) -> Result<Command> {
    let mut command = with_mke2fs(program()?)?.context("no newer mke2fs")?;
    command.arg("convert").arg(archive).args(["--to", OUT]);
    Ok(command)
}

/// What it needs, each time.
fn needs(environment: &Environment, archive: &Path) -> Result<Vec<Needs>> {
    let out = environment.path().join(OUT);
    let mut all = Vec::new();
    for run in 0..LOOKED_AT {
        let needs = Needs::of(conversion(archive)?.current_dir(environment.path()), || on_disk(&out, &RESULT))?;
        let (memory, scratch) = (needs.memory >> 20, needs.scratch >> 20);
        eprintln!("  look {run}: {memory} MiB of memory, {scratch} MiB of disk");
        all.push(needs);
    }
    Ok(all)
}

/// What its files take on the disk.
fn mebibytes(environment: &Environment) -> Result<f64> {
    let output = Command::new("du").args(["-sm", "root"]).current_dir(environment.path()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.split_whitespace().next().context("du says nothing")?.parse()?)
}

fn timed(directory: &Path, command: &mut Command) -> Result<f64> {
    for file in ["best.raw", "best.qcow2"] {
        let _ = std::fs::remove_file(directory.join(file));
    }
    let begun = Instant::now();
    let output = command.current_dir(directory).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(begun.elapsed().as_secs_f64())
}
