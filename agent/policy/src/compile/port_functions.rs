//! Port functions: for one set and class, (protocol, port) to verdict and deciding rule, flattened
//! by precedence into disjoint intervals. Equal functions are shared.

mod table;

use std::collections::BTreeMap;

use agent_common::maps::{
    ALLOW, DENY, FUNCTION_INLINE, FUNCTION_LONG, PortFunction, PortInterval, PortKey, PortVerdict,
};

pub(crate) use table::{FunctionId, Functions};

/// Precedence of NetworkPolicy rules. They are all equal; tiers will stand before and after.
pub(crate) const NETWORK_POLICY_RANK: u16 = 0x8000;

/// What a rule, or the absence of one, says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) verdict: u8,
    pub(crate) rank: u16,
    pub(crate) rule: u32,
}

impl Outcome {
    /// Isolated, and no rule admits it.
    pub(crate) const NO_RULE: Self = Self {
        verdict: DENY,
        rank: 0,
        rule: 0,
    };

    /// Admitted by a NetworkPolicy's rule.
    pub(crate) const fn admitted(rule: u32) -> Self {
        Self {
            verdict: ALLOW,
            rank: NETWORK_POLICY_RANK,
            rule,
        }
    }
}

/// A stretch of ports of one protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Interval {
    pub(crate) protocol: u8,
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) outcome: Outcome,
}

/// A flattened function: disjoint intervals by (protocol, first), and what holds elsewhere.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Function {
    pub(crate) base: Outcome,
    pub(crate) intervals: Vec<Interval>,
}

/// Builds a function from rules, first in precedence first: what is said stays said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flattening {
    said: BTreeMap<u8, Vec<Interval>>,
    base: Option<Outcome>,
}

impl Flattening {
    /// True when every port of every protocol is said: later rules change nothing.
    pub(crate) const fn is_complete(&self) -> bool {
        self.base.is_some()
    }

    /// The rule speaks of every port of every protocol.
    pub(crate) fn say_everywhere(&mut self, outcome: Outcome) {
        self.base.get_or_insert(outcome);
    }

    /// The rule speaks of these ports, both ends included.
    pub(crate) fn say(&mut self, protocol: u8, first: u16, last: u16, outcome: Outcome) {
        if self.is_complete() || first > last {
            return;
        }
        let said = self.said.entry(protocol).or_default();
        // Disjoint and in order: what meets the stretch is found by halving, not by looking at
        // all, which for each of 65 535 ports takes minutes.
        let from = said.partition_point(|interval| interval.last < first);
        let to = said.partition_point(|interval| interval.first <= last);
        let mut merged = Vec::new();
        let mut next = Some(first);
        let fresh = |merged: &mut Vec<Interval>, first, last| {
            merged.push(Interval {
                protocol,
                first,
                last,
                outcome,
            });
        };
        for interval in said.get(from..to).unwrap_or_default() {
            if let Some(start) = next
                && start < interval.first
            {
                fresh(&mut merged, start, interval.first - 1);
            }
            merged.push(*interval);
            next = interval.last.checked_add(1).filter(|next| *next <= last);
        }
        if let Some(start) = next {
            fresh(&mut merged, start, last);
        }
        said.splice(from..to, merged);
    }

    /// The function; `otherwise` where nothing was said.
    pub(crate) fn finish(self, otherwise: Outcome) -> Function {
        let base = self.base.unwrap_or(otherwise);
        let intervals = self.said.into_values().flatten();
        Function {
            base,
            intervals: joined(intervals.filter(|interval| interval.outcome != base)),
        }
    }
}

/// Joins neighbours that say the same.
fn joined(intervals: impl Iterator<Item = Interval>) -> Vec<Interval> {
    let mut result: Vec<Interval> = Vec::new();
    for interval in intervals {
        match result.last_mut() {
            Some(before)
                if before.protocol == interval.protocol
                    && before.outcome == interval.outcome
                    && before.last.checked_add(1) == Some(interval.first) =>
            {
                before.last = interval.last;
            }
            _ => result.push(interval),
        }
    }
    result
}

impl Function {
    /// What packets meet, rules forgotten: two functions with the same shape pass and drop the
    /// same packets.
    fn shape(&self) -> Function {
        let plain = |outcome: Outcome| Outcome {
            verdict: outcome.verdict,
            ..Outcome::NO_RULE
        };
        let base = plain(self.base);
        let intervals = self.intervals.iter().map(|interval| Interval {
            outcome: plain(interval.outcome),
            ..*interval
        });
        Function {
            base,
            intervals: joined(intervals.filter(|interval| interval.outcome != base)),
        }
    }

    /// True when it passes what is sent to a port.
    pub(crate) fn passes(&self, protocol: u8, port: u16) -> bool {
        let mut intervals = self.intervals.iter();
        let said = intervals.find(|interval| {
            interval.protocol == protocol && (interval.first..=interval.last).contains(&port)
        });
        said.map_or(self.base, |interval| interval.outcome).verdict == ALLOW
    }

    /// True when it does not fit into a row of VERDICTS.
    fn is_long(&self) -> bool {
        self.intervals.len() > PortFunction::default().intervals.len()
    }

    /// The row of VERDICTS; `function` names its rows of PORTS when it is long.
    fn row(&self, function: u32) -> PortFunction {
        let mut row = PortFunction {
            kind: FUNCTION_INLINE,
            verdict: self.base.verdict,
            rank: self.base.rank,
            rule: self.base.rule,
            ..PortFunction::default()
        };
        if self.is_long() {
            row.kind = FUNCTION_LONG;
            row.function = function;
            return row;
        }
        for (place, interval) in row.intervals.iter_mut().zip(&self.intervals) {
            *place = PortInterval {
                protocol: interval.protocol,
                verdict: interval.outcome.verdict,
                rank: interval.outcome.rank,
                first: interval.first,
                last: interval.last,
                rule: interval.outcome.rule,
            };
            row.count += 1;
        }
        row
    }

    /// The rows of PORTS of a long function.
    fn port_rows(&self, function: u32) -> Vec<(PortKey, PortVerdict)> {
        let mut rows = Vec::new();
        for interval in &self.intervals {
            let verdict = PortVerdict {
                verdict: interval.outcome.verdict,
                reserved: 0,
                rank: interval.outcome.rank,
                rule: interval.outcome.rule,
            };
            for (port, bits) in blocks(interval.first, interval.last) {
                let key = PortKey {
                    length: 40 + bits,
                    function_be: function.to_be_bytes(),
                    protocol: interval.protocol,
                    port_be: port.to_be_bytes(),
                    reserved: 0,
                };
                rows.push((key, verdict));
            }
        }
        rows
    }
}

/// The fewest aligned blocks that make up a stretch of ports: (first port, prefix bits).
fn blocks(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut blocks = Vec::new();
    let mut next = u32::from(first);
    let end = u32::from(last);
    while next <= end {
        let aligned = next.trailing_zeros().min(16);
        let room = (end - next + 1).ilog2();
        let size = aligned.min(room);
        blocks.push((u16::try_from(next).unwrap_or(u16::MAX), 16 - size));
        next += 1 << size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Outcome = Outcome::admitted(1);
    const B: Outcome = Outcome::admitted(2);

    fn stretches(function: &Function) -> Vec<(u8, u16, u16, u32)> {
        let stretch = |i: &Interval| (i.protocol, i.first, i.last, i.outcome.rule);
        function.intervals.iter().map(stretch).collect()
    }

    #[test]
    fn the_first_rule_to_speak_of_a_port_decides_it() {
        let mut flattening = Flattening::default();
        flattening.say(6, 100, 200, A);
        flattening.say(6, 300, 300, A);
        flattening.say(6, 50, 65535, B);
        flattening.say(17, 0, 65535, B);
        let function = flattening.finish(Outcome::NO_RULE);
        assert_eq!(
            stretches(&function),
            vec![
                (6, 50, 99, 2),
                (6, 100, 200, 1),
                (6, 201, 299, 2),
                (6, 300, 300, 1),
                (6, 301, 65535, 2),
                (17, 0, 65535, 2)
            ]
        );
        assert_eq!(function.base, Outcome::NO_RULE);
        let shape = function.shape();
        assert_eq!(
            stretches(&shape),
            vec![(6, 50, 65535, 0), (17, 0, 65535, 0)]
        );
    }

    #[test]
    fn a_rule_without_ports_covers_what_no_earlier_rule_said() {
        let mut flattening = Flattening::default();
        flattening.say(6, 80, 80, A);
        flattening.say_everywhere(B);
        flattening.say(6, 443, 443, A);
        let function = flattening.finish(Outcome::NO_RULE);
        assert_eq!(function.base, B);
        assert_eq!(stretches(&function), vec![(6, 80, 80, 1)]);
        assert_eq!(function.shape().intervals, vec![]);
    }

    #[test]
    fn blocks_cover_exactly_the_stretch() {
        for (first, last) in [
            (0, 65535),
            (1, 65534),
            (80, 80),
            (1000, 1999),
            (65535, 65535),
            (0, 0),
            (32767, 32768),
        ] {
            let mut covered: Vec<u32> = Vec::new();
            for (port, bits) in blocks(first, last) {
                covered.extend(u32::from(port)..u32::from(port) + (1 << (16 - bits)));
            }
            let wanted: Vec<u32> = (u32::from(first)..=u32::from(last)).collect();
            assert_eq!(covered, wanted, "{first}-{last}");
        }
        assert_eq!(blocks(0, 65535), vec![(0, 0)]);
    }
}
