//! `/nodes`: what the server last knew of them. The names of nodes in requests.

use serde_json::{Value, json};

use crate::{
    Settings,
    reply::{Answer, Refusal, json},
    store::{Kept, Node},
};

/// `GET /nodes[/NODE][?list]`.
pub(crate) fn get(settings: &Settings, kept: &Kept, node: Option<&str>, list: bool) -> Answer {
    let all = settings.clusters.values().flatten();
    match node {
        // one that was never used is not told from one that there is not
        Some(node) => match kept.nodes.get(node) {
            Some(known) => json(&known.view()),
            None => Err(Refusal::NotFound(node.into())),
        },
        None if list => json(&all.map(|node| json!(node)).collect()),
        None => {
            let view = |node: &String| (node.clone(), kept.nodes.get(node).map_or(Value::Null, Node::view));
            json(&Value::Object(all.map(view).collect()))
        }
    }
}

/// The nodes of a request: names, or ranges of them.
pub(crate) fn named(settings: &Settings, value: &Value) -> Result<Vec<String>, Refusal> {
    let wrong = |why: String| Refusal::coded(2, format!("Parameter 'nodes': {why}"));
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut nodes = Vec::new();
    for name in texts.into_iter().flat_map(expand) {
        if settings.cluster(&name).is_none() {
            return Err(wrong(format!("The node '{name}' does not exist")));
        }
        if !nodes.contains(&name) {
            nodes.push(name);
        }
    }
    if nodes.is_empty() { Err(wrong("mandatory".into())) } else { Ok(nodes) }
}

/// `a-[1-3].b` as three names.
fn expand(text: &str) -> Vec<String> {
    let range = text.split_once('[').and_then(|(before, rest)| {
        let (range, after) = rest.split_once(']')?;
        let (first, last) = range.split_once('-')?;
        Some((before, first.parse::<u32>().ok()?, last.parse::<u32>().ok()?, after))
    });
    match range {
        Some((before, first, last, after)) => {
            (first..=last.min(first + 1000)).map(|number| format!("{before}{number}{after}")).collect()
        }
        None => vec![text.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_its_names() {
        assert_eq!(expand("a-[2-4].b"), ["a-2.b", "a-3.b", "a-4.b"]);
        assert_eq!(expand("a-1"), ["a-1"]);
    }
}
