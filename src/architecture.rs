//! The rules of the house, as tests over the text of the sources: which modules stay pure, how long a
//! file may be, what must be documented and handled.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A source file: its path below `src`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text before the file's own tests.
    fn code(&self) -> &str {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        &self.text[..end]
    }

    /// Whether all of it is test code, or a double that stands in for the outside.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "tests.rs"
            || name.ends_with("_tests.rs")
            || self.path.contains("/tests/")
            || matches!(self.path.as_str(), "architecture.rs" | "api/rules.rs")
    }

    /// What it says of itself at its top.
    fn page(&self) -> impl Iterator<Item = &str> {
        self.text.lines().map_while(|line| line.strip_prefix("//!"))
    }

    /// Whether its page claims that it is pure.
    fn claims_to_be_pure(&self) -> bool {
        self.page().any(|line| line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "Pure"))
    }

    /// Whether it may neither wait, look nor ask for the time: because it decides, or because it says so.
    fn is_pure(&self) -> bool {
        let parts: Vec<&str> = self.path.trim_end_matches(".rs").split('/').collect();
        parts[0] == "api"
            || parts[0] == "store"
            || self.path.starts_with("transfer/plan")
            || parts.iter().any(|part| *part == "decide" || *part == "evaluate" || *part == "cmdline")
            || self.claims_to_be_pure()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn collect(directory: &Path, all: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            all.push(Source { path, text });
        }
    }
}

fn sources() -> Vec<Source> {
    let mut all = Vec::new();
    collect(&root(), &mut all);
    all.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(all.len() > 50, "only {} files", all.len());
    all
}

/// The variants of an enum, as its source lists them, with the line before each.
fn variants<'a>(text: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let start = text.find(&format!("pub enum {name} {{")).unwrap();
    let body = &text[start..start + text[start..].find("\n}").unwrap()];
    let lines: Vec<&str> = body.lines().collect();
    let variant = |line: &&str| line.starts_with("    ") && line.as_bytes().get(4).is_some_and(u8::is_ascii_uppercase);
    let place = |line: &&'a str| {
        let name = line.trim();
        &name[..name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len())]
    };
    let found = lines.windows(2).filter(|pair| variant(&pair[1])).map(|pair| (place(&pair[1]), pair[0].trim()));
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "{name} has no variants");
    found
}

#[test]
fn pure_modules_stay_pure() {
    const FORBIDDEN: [&str; 22] = [
        "kube::Client",
        "Client,",
        "reqwest",
        "tokio::",
        "std::fs",
        "fs::",
        "Timestamp::now",
        "Instant::now",
        "SystemTime",
        "rand::rng",
        "rand::random",
        "std::env",
        "Clock",
        // clients of drivers, and what makes them
        "AgentHttp",
        "HttpRepository",
        "OarRest",
        "KadeployRest",
        "dyn Kadeploy",
        "dyn NodeAgent",
        "dyn Repository",
        "dyn Site",
        "async fn",
    ];
    let sources = sources();
    let claims = sources.iter().filter(|source| source.claims_to_be_pure()).count();
    assert!(claims > 20, "only {claims} modules say that they are pure");
    for source in sources.iter().filter(|source| source.is_pure() && !source.is_test()) {
        for line in source.code().lines().filter(|line| !line.trim_start().starts_with("//")) {
            let found = FORBIDDEN.iter().find(|word| line.contains(*word));
            assert!(found.is_none(), "{}: {found:?} in {line:?}", source.path);
        }
    }
}

#[test]
fn transports_stay_inside_their_drivers() {
    // but for the other end of a wire
    const ENDS: [&str; 3] = ["driver/", "repository/http/", "agent/supervisor/collect/shelf.rs"];
    let outside = |path: &str| !ENDS.iter().any(|end| path.starts_with(end));
    for source in sources().iter().filter(|source| outside(&source.path) && !source.is_test()) {
        let code: String = source
            .code()
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| [line, "\n"])
            .collect();
        for statement in code.split(';') {
            assert!(!reaches_a_transport(statement), "{}: {statement:?}", source.path);
        }
    }
}

/// Whether a statement, over all its lines, names a driver's transport.
fn reaches_a_transport(statement: &str) -> bool {
    let words = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.skip_while(|word| *word != "driver").any(|word| word == "wire" || word == "rest")
}

#[test]
fn a_transport_is_found_in_every_kind_of_import() {
    for statement in
        ["use crate::driver::oar::rest::Reply", "use crate::{\n    driver::repository::{A, wire::B},\n    names,\n}"]
    {
        assert!(reaches_a_transport(statement), "{statement}");
    }
    assert!(!reaches_a_transport("use crate::{driver::repository::A, store::pack}"));
}

#[test]
fn files_are_short() {
    let sources = sources();
    for source in &sources {
        let lines = source.text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines", source.path);
    }
    // blank lines and a file's own tests make no file hard to read
    let length = |source: &Source| source.code().lines().filter(|line| !line.is_empty()).count();
    let mut lengths: Vec<usize> = sources.iter().map(length).collect();
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= 130, "half of the files have more than {median} lines");
    let main = sources.iter().find(|source| source.path == "main.rs").unwrap();
    assert!(main.text.lines().count() <= 60);
}

#[test]
fn every_module_says_what_it_is_for() {
    for source in sources().iter().filter(|source| !source.is_test()) {
        assert!(source.text.starts_with("//! "), "{} does not open with its purpose", source.path);
        let name = source.path.rsplit('/').next().unwrap();
        assert!(!["utils.rs", "common.rs", "helpers.rs", "manager.rs"].contains(&name), "{}", source.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];
    for source in sources().iter().filter(|source| source.path != "architecture.rs") {
        let found = marks.iter().find(|mark| source.text.contains(*mark));
        assert!(found.is_none(), "{}: {found:?}", source.path);
    }
}

#[test]
fn every_condition_and_reason_is_documented() {
    let text = fs::read_to_string(root().join("api/conditions.rs")).unwrap();
    for name in ["ConditionType", "Reason"] {
        for (variant, before) in variants(&text, name) {
            assert!(before.starts_with("/// ") && before.ends_with('.'), "{name}::{variant}: {before:?}");
        }
    }
}

#[test]
fn every_effect_is_produced_and_handled() {
    let sources = sources();
    let effects = &sources.iter().find(|source| source.path == "controller/job/plan.rs").unwrap().text;
    let of = |step: &str| {
        let belongs = |source: &&Source| source.path.starts_with(&format!("controller/job/{step}"));
        sources.iter().filter(belongs).map(Source::code).collect::<String>()
    };
    let (decided, acted) = (of("decide"), of("act"));
    for (variant, _) in variants(effects, "Effect") {
        let name = format!("Effect::{variant}");
        assert!(decided.contains(&name), "{name} is never decided");
        assert!(acted.contains(&name), "{name} is not handled");
    }
}

#[test]
fn the_crate_page_names_every_module() {
    let page = fs::read_to_string(root().join("lib.rs")).unwrap();
    let doc: String = page.lines().filter(|line| line.starts_with("//!")).collect();
    let modules = page.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let missing: BTreeSet<&str> = modules.filter(|module| !doc.contains(&format!("`{module}`"))).collect();
    assert_eq!(missing, BTreeSet::new());
}
