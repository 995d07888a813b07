//! Archives made into images, beside `mke2fs` itself, which reads archives: without a look at what is in them, without
//! kernel and initial ram disk, and without what belongs to one machine left out.

use std::{ops::RangeInclusive, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{cache, program},
    environment::{Environment, with_mke2fs},
};

use crate::report::{Figure, Measured, figure};

const RUNS: usize = 5;
/// MiB of an environment like those that sites offer.
const SIZE: RangeInclusive<f64> = 300.0..=450.0;
const BEST: &str = "mke2fs -q -F -t ext4 -L root -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d \"$1\" best.raw 10G && \
    qemu-img convert -q -f raw -O qcow2 best.raw best.qcow2";

/// Measures.
pub(crate) fn measure() -> Result<Measured> {
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    let environment = Environment::new()?;
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
        ("root.tar.zst", "zstd -10 -T2", "convert_zst_s", "convert_vs_best", Some(1.3)),
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
            let mut command = with_mke2fs(program()?)?.context("no newer mke2fs")?;
            let own = timed(environment.path(), command.arg("convert").arg(&archive).args(["--to", "out"]))?;
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
    Ok(measured)
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
