//! Addresses of the API, for both sides. Pure.

use crate::names::MemberIndex;

/// Its group.
pub const GROUP: &str = "subresources.vmdeploy.io";
/// Its version.
pub const VERSION: &str = "v1alpha1";

/// Address of what a member's command has printed.
pub fn logs(namespace: &str, job: &str, member: MemberIndex, follow: bool) -> String {
    let follow = if follow { "&follow=true" } else { "" };
    format!("{}/logs?member={member}{follow}", of_job(namespace, job))
}

/// Address of a file that a member has kept.
pub fn output(namespace: &str, job: &str, member: MemberIndex, path: &str) -> String {
    format!("{}/outputs/{}?member={member}", of_job(namespace, job), escaped(path.trim_start_matches('/')))
}

/// Address of a TCP port of a member's guest. The API server ends what takes longer than a minute but
/// under names that it knows to last, and this is one of them.
pub fn port(namespace: &str, job: &str, member: MemberIndex, port: u16) -> String {
    format!("{}/portforward?member={member}&port={port}", of_job(namespace, job))
}

/// Address of a member's serial console. The name is one under which the API server lets a request last.
pub fn console(namespace: &str, job: &str, member: MemberIndex) -> String {
    format!("{}/attach?member={member}", of_job(namespace, job))
}

/// Address of commands in a member's guest.
pub fn exec(namespace: &str, job: &str, member: MemberIndex) -> String {
    format!("{}/exec?member={member}", of_job(namespace, job))
}

fn of_job(namespace: &str, job: &str) -> String {
    format!("/apis/{GROUP}/{VERSION}/namespaces/{}/besteffortjobs/{}", escaped(namespace), escaped(job))
}

/// Escapes everything that means something in an address, but for slashes.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_carry_any_path() {
        assert_eq!(
            logs("team", "pi", 2, true),
            "/apis/subresources.vmdeploy.io/v1alpha1/namespaces/team/besteffortjobs/pi/logs?member=2&follow=true"
        );
        let address = output("team", "pi", 0, "/data/a b?c#d%é");
        assert!(address.ends_with("/besteffortjobs/pi/outputs/data/a%20b%3Fc%23d%25%C3%A9?member=0"), "{address}");
    }
}
