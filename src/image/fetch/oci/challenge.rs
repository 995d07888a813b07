//! What a registry wants of those who are not known to it (`WWW-Authenticate`). Pure.

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user and a password with each request.
    Basic,
    /// A token, which is to be had at an address.
    Bearer { realm: String, service: Option<String> },
}

/// Reads a challenge from the values of that header; of several, the one for a token.
pub(super) fn read<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    values.filter_map(one).max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
}

fn one(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    Some(Challenge::Bearer { realm: parameter(rest, "realm")?, service: parameter(rest, "service") })
}

/// A parameter of a list `name="value",...`; values may hold commas.
fn parameter(mut list: &str, name: &str) -> Option<String> {
    loop {
        let (key, rest) = list.split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_at(rest.find(',').unwrap_or(rest.len())),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        list = rest.trim_start().strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) }
    }

    #[rstest]
    #[case::usual(&[r#"Bearer realm="https://a/token",service="reg",scope="repository:x:pull,push""#], Some(bearer("https://a/token", Some("reg"))))]
    #[case::in_another_order(&[r#"bearer scope="repository:x:pull,push", service=reg ,realm="https://a/""#], Some(bearer("https://a/", Some("reg "))))]
    #[case::without_a_service(&[r#"Bearer realm="https://a/""#], Some(bearer("https://a/", None)))]
    #[case::password(&[r#"Basic realm="reg""#], Some(Challenge::Basic))]
    #[case::either(&["Basic realm=x", r#"Bearer realm="https://a/""#], Some(bearer("https://a/", None)))]
    #[case::nowhere(&[r#"Bearer service="reg""#], None)]
    #[case::unended(&[r#"Bearer realm="https://a/"#], None)]
    #[case::another_one(&["Negotiate"], None)]
    #[case::nothing(&[], None)]
    fn challenges_are_read(#[case] texts: &[&str], #[case] wanted: Option<Challenge>) {
        assert_eq!(read(texts.iter().copied()), wanted);
    }
}
