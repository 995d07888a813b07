//! Sets of hosts as people write them: `node-[1-32,40],web[01-03]`. Pure.

/// No set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{set:?} is no set of hosts: {reason}")]
pub(super) struct SetError {
    set: String,
    reason: &'static str,
}

/// Largest number of hosts: more is a slip of the pen.
const MOST: usize = 100_000;

/// The hosts of a set, each once, in the order in which they are named. What follows a `!` is left out of what comes
/// before it.
pub(super) fn hosts(set: &str) -> Result<Vec<String>, SetError> {
    let wrong = |reason| SetError { set: set.to_owned(), reason };
    let mut sides = split(set, '!').map_err(wrong)?.into_iter();
    let mut hosts = union(sides.next().unwrap_or_default()).map_err(wrong)?;
    for side in sides {
        let without: std::collections::HashSet<String> = union(side).map_err(wrong)?.into_iter().collect();
        hosts.retain(|host| !without.contains(host));
    }
    if hosts.is_empty() { Err(wrong("it is empty")) } else { Ok(hosts) }
}

/// The hosts of a file: a set on each line, what follows a `#` being a remark. A host that is named for each of its
/// processors, as in a scheduler's file, is one.
pub(super) fn listed(text: &str) -> Result<Vec<String>, SetError> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let mut all = Vec::new();
    for line in lines {
        all.extend(hosts(line)?);
    }
    once(&mut all);
    if all.is_empty() { Err(SetError { set: text.to_owned(), reason: "no host is listed" }) } else { Ok(all) }
}

fn union(text: &str) -> Result<Vec<String>, &'static str> {
    let mut all = Vec::new();
    for pattern in split(text, ',')? {
        let pattern = pattern.trim();
        if pattern.is_empty() {
            return Err("a name is empty");
        }
        // ssh would take it for an option
        if pattern.starts_with('-') || pattern.contains(char::is_whitespace) {
            return Err("that is no name of a host");
        }
        all.extend(expand(pattern)?);
        if all.len() > MOST {
            return Err("too many hosts");
        }
    }
    once(&mut all);
    Ok(all)
}

fn once(hosts: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
}

/// Splits outside of brackets.
fn split(text: &str, at: char) -> Result<Vec<&str>, &'static str> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (position, letter) in text.char_indices() {
        match letter {
            '[' if inside => return Err("a bracket within brackets"),
            '[' => inside = true,
            ']' if !inside => return Err("a bracket closes that was not opened"),
            ']' => inside = false,
            letter if letter == at && !inside => {
                parts.push(&text[start..position]);
                start = position + letter.len_utf8();
            }
            _ => {}
        }
    }
    if inside {
        return Err("a bracket is not closed");
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// All names of one pattern; each bracket with each.
fn expand(pattern: &str) -> Result<Vec<String>, &'static str> {
    let Some((before, rest)) = pattern.split_once('[') else { return Ok(vec![pattern.to_owned()]) };
    let (numbers, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
    let after = expand(after)?;
    let mut names = Vec::new();
    for range in numbers.split(',') {
        for number in counted(range.trim())? {
            names.extend(after.iter().map(|after| format!("{before}{number}{after}")));
            if names.len() > MOST {
                return Err("too many hosts");
            }
        }
    }
    Ok(names)
}

/// `3`, `1-32`, `001-032` (as wide as written), `0-8/2` (every second).
fn counted(range: &str) -> Result<Vec<String>, &'static str> {
    let (ends, step) = match range.split_once('/') {
        Some((ends, step)) => (ends, number(step)?),
        None => (range, 1),
    };
    let (first, last) = ends.split_once('-').unwrap_or((ends, ends));
    let (from, to) = (number(first)?, number(last)?);
    if step == 0 {
        return Err("a step of nothing");
    }
    if to < from {
        return Err("a range that runs backwards");
    }
    if (to - from) / step >= MOST as u64 {
        return Err("too many hosts");
    }
    let width = if first.starts_with('0') { first.len() } else { 0 };
    let mut names = Vec::new();
    let mut at = from;
    while at <= to {
        names.push(format!("{at:0width$}"));
        at = at.saturating_add(step);
    }
    Ok(names)
}

fn number(text: &str) -> Result<u64, &'static str> {
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("brackets hold numbers and ranges of them");
    }
    text.parse().map_err(|_| "brackets hold numbers and ranges of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_with_taktuk_and_clustershell() {
        for (set, expected) in [
            ("a", "a"),
            ("node-[1-3]", "node-1 node-2 node-3"),
            ("n[08-11]", "n08 n09 n10 n11"),
            ("n[1,3-4],m", "n1 n3 n4 m"),
            ("r[1-2]n[1-2].site", "r1n1.site r1n2.site r2n1.site r2n2.site"),
            ("n[0-6/3]", "n0 n3 n6"),
            ("n[1-4]!n[2-3]", "n1 n4"),
            ("n[1-2],n2", "n1 n2"),
            ("n[0-1]", "n0 n1"),
            ("root@10.0.0.[1-2]", "root@10.0.0.1 root@10.0.0.2"),
        ] {
            assert_eq!(hosts(set).unwrap().join(" "), expected, "{set}");
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for set in ["", "n[1", "n1]", "n[3-1]", "n[a]", "n[[1]]", "n[1-]", "a,,b", "-oProxyCommand=x", "n!n", "a b"] {
            assert!(hosts(set).is_err(), "{set}");
        }
        for set in ["n[1-999999999]", "n[1-1000]m[1-1000]", "n[1-4/0]", "n[99999999999999999999]"] {
            assert!(hosts(set).is_err(), "{set}");
        }
    }

    #[test]
    fn a_file_lists_hosts() {
        let listed = listed("# ours\nnode-1\nnode-1\n\nnode-[2-3] # and these\n").unwrap();
        assert_eq!(listed, ["node-1", "node-2", "node-3"]);
        assert!(super::listed("# nobody\n").is_err());
    }
}
