//! What a guest needs after a restore: its wall clock stood still, and its random generator is a
//! copy of what every other restore of the same generation has.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::{
    GuestError,
    channel::Channel,
    files::{self, SHORT},
};
use crate::clock::Clock;

/// Largest error of the clock that is accepted.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// The same where the guest reports that its clock chip could not be set.
const CLOCK_SLACK_WITHOUT_CHIP: Duration = Duration::from_millis(50);
/// Gives the kernel's generator new bytes and makes it use them at once: adding alone does not.
const RESEED: &str = "open(F,'+<','/dev/random') or die; local $/; my $b=<STDIN>; my $n=length $b; \
    ioctl(F,0x40085203,pack('ii',$n*8,$n).$b) or die; ioctl(F,0x5207,0) or die";
const RESEED_LIMIT: Duration = Duration::from_secs(30);

/// Sets the guest's clock to the host's and checks it.
pub async fn set_clock(channel: &mut Channel, clock: &Clock) -> Result<(), GuestError> {
    let now = clock.now().as_nanosecond();
    let slack = match channel.execute("guest-set-time", json!({ "time": now as i64 }), SHORT * 2).await {
        Ok(_) => CLOCK_SLACK,
        // it is set all the same where only the clock chip is missing; the check tells
        Err(GuestError::Refused { .. }) => CLOCK_SLACK_WITHOUT_CHIP,
        Err(error) => return Err(error),
    };
    // what the question takes under emulation is no error of the clock
    let before = clock.now();
    let guest = channel.execute("guest-get-time", json!({}), SHORT).await?;
    let guest = guest.as_i64().ok_or(GuestError::Strange("guest-get-time"))?;
    if in_time(i128::from(guest), before, clock.now(), slack) {
        Ok(())
    } else {
        Err(GuestError::Program { what: "setting the clock", text: "it is wrong afterwards".into() })
    }
}

fn in_time(guest: i128, before: Timestamp, after: Timestamp, slack: Duration) -> bool {
    let slack = slack.as_nanos() as i128;
    (before.as_nanosecond() - slack..=after.as_nanosecond() + slack).contains(&guest)
}

/// Gives the guest's kernel randomness of its own.
pub async fn reseed(channel: &mut Channel) -> Result<(), GuestError> {
    let bytes: [u8; 32] = rand::random();
    let arguments = ["-e".to_owned(), RESEED.into()];
    let done = files::run(channel, "/usr/bin/perl", &arguments, &[], &bytes, RESEED_LIMIT).await?;
    if done.code == 0 {
        Ok(())
    } else {
        Err(GuestError::Program { what: "the reseeding of its randomness", text: done.text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_may_be_wrong_by_a_little_beside_the_time_of_the_question() {
        let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap();
        let guest = |ms: i128| ms * 1_000_000;
        let slack = Duration::from_millis(50);
        assert!(in_time(guest(1_000), at(1_000), at(3_000), slack));
        assert!(in_time(guest(3_040), at(1_000), at(3_000), slack));
        assert!(!in_time(guest(3_060), at(1_000), at(3_000), slack));
        assert!(!in_time(guest(940), at(1_000), at(3_000), slack));
    }
}
