//! What a plan would take on ideal links, and what no plan can beat, in words. Pure.

use std::fmt::Write as _;

use crate::transfer::plan::{
    Place, Policy,
    bounds::Input,
    simulate::{Run, Terms, run},
};

/// What would be done with these nodes.
pub(super) fn plan(input: &Input, policy: Policy, senders: usize, chunk: u64) -> Run {
    run(input, &Terms { senders, chunk, deaths: Vec::new() }, policy)
}

/// The schedule and the bounds of these nodes.
pub(super) fn schedule(hosts: &[&str], input: &Input, run: &Run) -> String {
    let mut text = String::from("   second  what\n");
    for (at, going) in &run.schedule {
        let to = match going.to {
            Place::Repository => "here",
            Place::Node(node) => hosts[node],
        };
        let _ = writeln!(text, "{at:9.2}  {} sends {} bytes to {to}", hosts[going.from], going.bytes);
    }
    let mut free: Vec<(f64, &str)> =
        run.free.iter().zip(hosts).filter_map(|(free, host)| Some(((*free)?, *host))).collect();
    free.sort_by(|a, b| a.0.total_cmp(&b.0));
    text.push_str("   second  free\n");
    for (number, (at, host)) in free.iter().enumerate() {
        let _ =
            writeln!(text, "{at:9.2}  {host} ({} of {}, bound {:.2})", number + 1, hosts.len(), input.free(number + 1));
    }
    let _ = writeln!(text, "all bytes are here after {:.2} s, bound {:.2} s", run.end, input.all());
    let _ =
        writeln!(text, "node-seconds {:.1}, bound with equal sizes {:.1}", run.node_seconds(), input.node_seconds());
    text
}

/// How many nodes a plan has free within a time, and how many any plan could.
pub(super) fn within(input: &Input, seconds: f64, senders: usize, chunk: u64) -> (usize, usize) {
    let run = plan(input, Policy::Deadline { within: seconds }, senders, chunk);
    let planned = run.free.iter().flatten().filter(|free| **free <= seconds * 1.001).count();
    let most = (0..=input.sizes.len()).rev().find(|count| input.free(*count) <= seconds);
    (planned, most.unwrap_or_default().max(planned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_told_with_its_bounds() {
        let hosts: Vec<String> = (0..16).map(|node| format!("n{node}")).collect();
        let input = Input { sizes: vec![1000; 16], node: 1000.0, repository: 1000.0, room: u64::MAX / 2 };
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let text = schedule(&hosts, &input, &plan(&input, Policy::Target { share: 0.8 }, 1, 1));
        assert!(text.contains("sends 1000 bytes to here") && text.contains("(13 of 16, bound 3.25)"), "{text}");
        assert!(text.contains("all bytes are here after 16.00 s, bound 16.00 s"), "{text}");
        let (planned, most) = within(&input, 4.0, 1, 1);
        assert!(planned >= 12 && most >= planned && most < 16, "{planned} {most}");
    }
}
