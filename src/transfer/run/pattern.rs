//! The files that are meant by a path in which `*` and `?` stand for what the names of files have there.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Whether it may mean several files.
pub(super) fn several(path: &str) -> bool {
    path.contains(['*', '?'])
}

/// What it means, in order. A path without such letters means itself, whether or not it is there.
pub(super) fn files(path: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else {
            for path in &mut found {
                path.push(component);
            }
            continue;
        };
        let pattern = name.to_string_lossy();
        if !several(&pattern) {
            for path in &mut found {
                path.push(name);
            }
            continue;
        }
        let mut next = Vec::new();
        for directory in &found {
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            let entries = match fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in entries {
                let name = entry?.file_name();
                if matches(&pattern, &name.to_string_lossy()) {
                    next.push(directory.join(name));
                }
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

/// As a shell has it: what is hidden has to be named.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // how far the name is matched by the pattern up to here: one place, or several after a star
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for letter in pattern {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            next[at] = match letter {
                '*' => reached[..=at].contains(&true),
                letter => at > 0 && reached[at - 1] && (letter == '?' || letter == name[at - 1]),
            };
        }
        reached = next;
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_others_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("*", ".a", false),
            (".*", ".a", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("?.img", "1.img", true),
            ("?.img", "12.img", false),
            ("*.i*g", "x.y.img", true),
            ("a", "a", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_reach_over_directories() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b/2.img", "a/1.img", "a/x"] {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let root = directory.path().to_str().unwrap();
        let found = files(&format!("{root}/*/?.img")).unwrap();
        assert_eq!(found, [directory.path().join("a/1.img"), directory.path().join("b/2.img")]);
        assert_eq!(files("/not/there").unwrap(), [PathBuf::from("/not/there")]);
        assert!(files(&format!("{root}/c*")).unwrap().is_empty());
    }
}
