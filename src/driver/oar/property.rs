//! Which SQL conditions on resources are passed on to OAR, which puts them into its own queries. Pure.
//!
//! A condition compares properties with values. Everything by which it could become more than that, a
//! part of the query around it or a call of the database's functions, is refused in words for people.

/// Characters besides letters and digits. No shell behind the API takes one of them for its own.
const ALLOWED: &str = "._-='<>!() ,%";
/// Words that may stand before a parenthesis. Any other would be a function.
const OPERATORS: [&str; 4] = ["and", "or", "not", "in"];

/// Why a condition is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadProperty {
    /// A character that it does not need.
    #[error("property may hold only letters, digits and {ALLOWED}, but holds {0:?}")]
    Character(char),
    /// A quote that is never closed.
    #[error("property has a quote ' without another one that closes it")]
    OpenQuote,
    /// Parentheses that do not match.
    #[error("property has a parenthesis without its counterpart")]
    Parenthesis,
    /// A function.
    #[error("property may compare properties with values, but not call the function {0}")]
    Call(String),
    /// A query.
    #[error("property may compare properties with values, but not hold a query of its own (select)")]
    Query,
    /// A comment.
    #[error("property may not hold a comment (--)")]
    Comment,
}

/// Checks a condition.
pub fn check(property: &str) -> Result<(), BadProperty> {
    if let Some(other) = property.chars().find(|c| !c.is_ascii_alphanumeric() && !ALLOWED.contains(*c)) {
        return Err(BadProperty::Character(other));
    }
    let mut open = 0_u32;
    // outside of quotes is every other piece
    let pieces: Vec<&str> = property.split('\'').collect();
    if pieces.len().is_multiple_of(2) {
        return Err(BadProperty::OpenQuote);
    }
    for piece in pieces.iter().step_by(2) {
        if piece.contains("--") {
            return Err(BadProperty::Comment);
        }
        let mut before = None;
        let mut rest = piece.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = rest.find(|c: char| !is_of_a_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(length.max(1));
            match first {
                '(' => match before.filter(|word: &&str| !OPERATORS.contains(&word.to_lowercase().as_str())) {
                    Some(function) => return Err(BadProperty::Call(function.into())),
                    None => open += 1,
                },
                ')' => open = open.checked_sub(1).ok_or(BadProperty::Parenthesis)?,
                _ if word.eq_ignore_ascii_case("select") => return Err(BadProperty::Query),
                _ => {}
            }
            before = (length > 0).then_some(word);
            rest = after.trim_start();
        }
    }
    if open == 0 { Ok(()) } else { Err(BadProperty::Parenthesis) }
}

fn is_of_a_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("cluster='paravance'")]
    #[case::operators("cluster = 'a' AND (mem > 64 or not(host in ('n-1', 'n-2')))")]
    #[case::doubled("((gpu_count >= 2 and selected='YES'))")]
    #[case::pattern("host LIKE 'para%' AND NOT (cputype = 'Intel(R) select (x')")]
    #[case::a_quote_in_a_value("comment = 'it''s (here'")]
    fn conditions_are_passed_on(#[case] property: &str) {
        assert_eq!(check(property), Ok(()));
    }

    #[rstest]
    #[case::call("pg_sleep(60) IS NULL", "the function pg_sleep")]
    #[case::call_with_blanks("mem > 1 and pg_sleep  (60) is null", "the function pg_sleep")]
    #[case::qualified_call("pg_catalog.pg_sleep(60) = 1", "the function pg_catalog.pg_sleep")]
    #[case::call_within("a in (lower('x'))", "the function lower")]
    #[case::out_of_the_query("1=1) OR (1=1", "counterpart")]
    #[case::never_closed("(mem > 1", "counterpart")]
    #[case::closed_in_a_value("(mem > ')'", "counterpart")]
    #[case::open_quote("cluster='a", "quote")]
    #[case::three_quotes("cluster='a' or 'b", "quote")]
    #[case::query("mem in (Select 1)", "select")]
    #[case::comment("mem > 1 -- x", "comment")]
    #[case::statement("1=1; drop table jobs", "';'")]
    #[case::shell("`id`", "'`'")]
    fn what_is_more_than_a_condition_is_refused(#[case] property: &str, #[case] says: &str) {
        let said = check(property).expect_err(property).to_string();
        assert!(said.contains(says), "{said}");
    }
}
