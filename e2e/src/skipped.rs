//! Tests that this machine lacks something for: they pass, and are named at the end of a run.

use std::{env, fs::File, io::Write as _, path::Path};

use anyhow::{Context as _, Result};

/// Says that a test could not be done, and why; in the file `VMDEPLOY_SKIPPED`, if there is one, as well.
pub fn skipped(test: &str, why: &str) -> Result<()> {
    eprintln!("skipped: {why}");
    env::var_os("VMDEPLOY_SKIPPED").map_or(Ok(()), |file| add(Path::new(&file), test, why))
}

/// Adds a line. Tests do so beside each other: it is one write.
fn add(file: &Path, test: &str, why: &str) -> Result<()> {
    let opened = File::options().append(true).create(true).open(file);
    let written = opened.and_then(|mut opened| opened.write_all(format!("{test}: {why}\n").as_bytes()));
    written.with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("skipped");
        add(&file, "one", "no mirror").unwrap();
        add(&file, "another", "no network").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one: no mirror\nanother: no network\n");
        assert!(add(directory.path(), "one", "no mirror").is_err());
    }
}
