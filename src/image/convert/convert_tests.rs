use super::*;

#[test]
fn the_log_is_cut_at_its_beginning() {
    assert_eq!(tail(&["one".into(), "two".into()]), "one\ntwo");
    let long = tail(&["x".repeat(LOG), "the end".into()]);
    assert!(long.chars().count() == LOG && long.ends_with("the end"));
}
