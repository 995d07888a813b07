//! What comes in at the repository while so many send as may. Pure.

/// Over which seconds it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Those that are left out, in which a connection gains speed.
    pub warm: f64,
    /// Those that count.
    pub window: f64,
}

/// Bytes of a span of time in which nothing changed.
#[derive(Debug)]
pub struct Meter {
    span: Span,
    /// Since when so many have been sending, and since when their bytes are counted.
    sending: Option<(usize, f64)>,
    counted: Option<f64>,
    bytes: u64,
}

impl Meter {
    /// Measures over such spans.
    pub fn new(span: Span) -> Self {
        Self { span, sending: None, counted: None, bytes: 0 }
    }

    /// So many bytes have come.
    pub fn came(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Bytes a second, if as many as may have been sending for long enough.
    pub fn rate(&mut self, now: f64, sending: usize, may: usize) -> Option<f64> {
        if sending < may {
            (self.sending, self.counted) = (None, None);
            return None;
        }
        let (_, since) = *self.sending.get_or_insert((may, now));
        if self.sending.is_some_and(|(before, _)| before != may) {
            (self.sending, self.counted) = (Some((may, now)), None);
            return None;
        }
        if now - since < self.span.warm {
            return None;
        }
        let Some(counted) = self.counted else {
            (self.counted, self.bytes) = (Some(now), 0);
            return None;
        };
        if now - counted < self.span.window {
            return None;
        }
        let rate = self.bytes as f64 / (now - counted);
        (self.counted, self.bytes) = (Some(now), 0);
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_span_is_measured() {
        let mut meter = Meter::new(Span { warm: 0.2, window: 0.3 });
        let mut found = Vec::new();
        for step in 0..40 {
            let now = f64::from(step) / 10.0;
            meter.came(100);
            // for a moment nobody sends
            let sending = usize::from(step != 12);
            found.extend(meter.rate(now, sending, 1).map(|rate| (step, rate.round() as i64)));
        }
        assert!(found.len() >= 4 && found.iter().all(|(_, rate)| (990..=1010).contains(rate)), "{found:?}");
        assert!(found[0].0 >= 5 && !found.iter().any(|(step, _)| (12..17).contains(step)), "{found:?}");
        assert_eq!(meter.rate(4.0, 1, 2), None, "another number may send");
    }
}
