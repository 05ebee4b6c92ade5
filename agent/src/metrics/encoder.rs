//! Families of metrics in the exposition format, by way of `prometheus_client`.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::reconcile::Histogram;

/// A series' labels.
pub(super) type Labels = Vec<(&'static str, String)>;

/// One encoded value.
pub(super) enum Value<'a> {
    Count(u64),
    Level(f64),
    Histogram(&'a Histogram),
}

/// Writes families of one exposition.
pub(super) struct Encoder<'a, 'b>(pub(super) &'a mut DescriptorEncoder<'b>);

impl Encoder<'_, '_> {
    #[expect(single_use_lifetimes, reason = "anonymous ones are not stable here")]
    pub(super) fn family<'v>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels, Value<'v>)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            if labels.is_empty() {
                return write_value(family, &value);
            }
            let one: MetricEncoder<'_> = family.encode_family(&labels)?;
            write_value(one, &value)?;
        }
        Ok(())
    }

    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, u64)>,
    ) -> fmt::Result {
        let series = series
            .into_iter()
            .map(|(labels, count)| (labels, Value::Count(count)));
        self.family(name, help, MetricType::Counter, series)
    }

    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        series: Vec<(Labels, f64)>,
    ) -> fmt::Result {
        let series = series
            .into_iter()
            .map(|(labels, level)| (labels, Value::Level(level)));
        self.family(name, help, MetricType::Gauge, series)
    }
}

fn write_value(mut one: MetricEncoder<'_>, value: &Value<'_>) -> fmt::Result {
    match value {
        Value::Count(count) => one.encode_counter::<NoLabelSet, _, u64>(count, None),
        Value::Level(level) => one.encode_gauge(level),
        Value::Histogram(histogram) => {
            let buckets: Vec<(f64, u64)> = Histogram::BOUNDS
                .into_iter()
                .zip(histogram.counts)
                .chain([(f64::INFINITY, histogram.longer)])
                .collect();
            one.encode_histogram::<NoLabelSet>(
                histogram.sum.as_secs_f64(),
                histogram.count(),
                &buckets,
                None,
            )
        }
    }
}
