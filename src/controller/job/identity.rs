//! Who the members are: addresses and hardware addresses, derived from the job's uid, so that they
//! stay the same for the job's whole life. Pure.

use crate::{api::job_status::MemberStatus, names::JobUid};

/// The members of a job, none of them placed.
pub fn members(job: &JobUid, count: u32) -> Vec<MemberStatus> {
    (0..count).map(|index| member(job, index)).collect()
}

fn member(job: &JobUid, index: u32) -> MemberStatus {
    let hash = blake3::hash(job.0.as_bytes());
    let bytes = hash.as_bytes();
    // a /22 of 10.64.0.0/10 for each job: room for 1,022 members
    let block = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) % (1 << 12);
    let address = std::net::Ipv4Addr::from(0x0a40_0000 + (block << 10) + index + 1);
    let [high, low] = u16::try_from(index).unwrap_or(u16::MAX).to_be_bytes();
    // 0x02: locally administered, one station
    let mac = [0x02, bytes[3], bytes[4], bytes[5], high, low];
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    MemberStatus { index, address: address.to_string(), mac: mac.join(":"), ..MemberStatus::default() }
}

/// Host name of a member.
pub fn hostname(job: &str, index: u32) -> String {
    let name: String = job.chars().map(|c| if c == '.' { '-' } else { c }).take(50).collect();
    format!("{}-{index}", name.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_depends_on_the_job_and_the_index_only() {
        let job = JobUid::from("3f2b8a10-9c1d-4e5f-8a7b-112233445566");
        let three = members(&job, 3);
        assert_eq!(three, members(&job, 4)[..3]);
        let macs: std::collections::BTreeSet<_> = members(&job, 1000).into_iter().map(|m| m.mac).collect();
        assert_eq!(macs.len(), 1000);
        assert!(three[0].mac.starts_with("02:"), "{}", three[0].mac);
        assert!(three[0].address.starts_with("10."), "{}", three[0].address);
        assert_ne!(members(&"another".into(), 1)[0].mac, three[0].mac);
    }

    #[test]
    fn host_names_are_valid() {
        assert_eq!(hostname("pi.v2", 0), "pi-v2-0");
        assert!(hostname(&"x".repeat(253), 1023).len() <= 63);
    }
}
