//! How fast the links are, by what moved over them. Pure.
//!
//! Plans are made for links that are alike until one is found to differ: a rate that is near that of most others is
//! taken for the same, so that what is only noise changes no plan.

/// Bytes a second of a link of 1 Gbit/s, as TCP has it: what is assumed of a link before anything has moved.
pub(super) const ASSUMED: f64 = 117.7e6;
/// A link differs if it is not within this factor of most others.
const DIFFERS: f64 = 1.75;
/// So many of the last measurements of a link count.
const LAST: usize = 3;

#[derive(Clone, Debug, Default)]
struct Link(Vec<f64>);

impl Link {
    fn add(&mut self, rate: f64) {
        if self.0.len() == LAST {
            self.0.remove(0);
        }
        self.0.push(rate);
    }

    /// The middle one of the last measurements, or the better of two: one may have waited for the other end, or for
    /// this process.
    fn rate(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

/// What is known of all links.
#[derive(Debug)]
pub(super) struct Rates {
    up: Vec<Link>,
    down: Vec<Link>,
    repository: Link,
    given: Option<f64>,
    most: f64,
}

impl Rates {
    /// Of so many nodes; with a limit, none is faster.
    pub(super) fn new(nodes: usize, given: Option<f64>) -> Self {
        let links = vec![Link::default(); nodes];
        Self { up: links.clone(), down: links, repository: Link::default(), given, most: given.unwrap_or(ASSUMED) }
    }

    /// A move between nodes, or of the only sender to the repository, goes at this rate.
    pub(super) fn moved(&mut self, from: usize, to: Option<usize>, rate: f64) {
        self.up[from].add(rate);
        if let Some(to) = to {
            self.down[to].add(rate);
        }
        let mut known: Vec<f64> = self.up.iter().chain(&self.down).filter_map(Link::rate).collect();
        known.sort_by(f64::total_cmp);
        self.most = known.get(known.len() / 2).copied().or(self.given).unwrap_or(ASSUMED);
    }

    /// The repository took in so much.
    pub(super) fn took(&mut self, rate: f64) {
        self.repository.add(rate);
    }

    /// Most links.
    pub(super) fn most(&self) -> f64 {
        self.most
    }

    /// What a node sends.
    pub(super) fn up(&self, node: usize) -> f64 {
        self.like(self.up[node].rate())
    }

    /// What a node takes in.
    pub(super) fn down(&self, node: usize) -> f64 {
        self.like(self.down[node].rate())
    }

    /// What the repository takes in.
    pub(super) fn repository(&self) -> f64 {
        // by itself it says nothing: plans are made by how links compare
        self.like(self.repository.rate().filter(|_| self.known()))
    }

    /// Whether any link was measured.
    pub(super) fn known(&self) -> bool {
        self.up.iter().any(|link| link.rate().is_some())
    }

    /// What the repository takes in from its next sender, in bytes a second.
    pub(super) fn next(&self) -> f64 {
        self.repository.rate().unwrap_or(self.most)
    }

    fn like(&self, rate: Option<f64>) -> f64 {
        let alike = |rate: &f64| *rate * DIFFERS >= self.most && *rate <= self.most * DIFFERS;
        rate.filter(|rate| !alike(rate)).unwrap_or(self.most).max(1.0)
    }

    /// Which links differ from most, in steps of that factor: a plan holds while this does.
    pub(super) fn differing(&self) -> Vec<i32> {
        let nodes = 0..self.up.len();
        let links = nodes.flat_map(|node| [self.up(node), self.down(node)]).chain([self.repository()]);
        links.map(|rate| ((rate / self.most).ln() / DIFFERS.ln() / 2.0).round() as i32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_alike_until_one_is_not() {
        let mut rates = Rates::new(4, None);
        let before = rates.differing();
        for (node, rate) in [(0, 100.0), (1, 110.0), (2, 80.0), (3, 95.0)] {
            rates.moved(node, Some((node + 1) % 4), rate);
        }
        assert_eq!(rates.differing(), before);
        assert!((rates.up(2) - rates.up(1)).abs() < 1e-9);
        rates.moved(3, Some(0), 20.0);
        assert_eq!(rates.differing(), before, "one slow move may be the other end's");
        for _ in 0..3 {
            rates.moved(3, Some(0), 20.0);
        }
        assert!((rates.up(3) - 20.0).abs() < 1e-9);
        assert_ne!(rates.differing(), before);
    }

    #[test]
    fn a_repository_of_several_links_is_found() {
        let mut rates = Rates::new(2, Some(100.0));
        assert!((rates.repository() - 100.0).abs() < 1e-9);
        rates.moved(0, None, 100.0);
        rates.took(310.0);
        assert!((rates.repository() - 310.0).abs() < 1e-9);
        assert!((rates.up(0) - 100.0).abs() < 1e-9);
    }
}
