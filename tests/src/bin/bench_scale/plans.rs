//! What plans cost, planned and written: ten thousand entries, one more or less, fifty thousand.

use std::path::Path;

use agent_policy::model::Change;
use anyhow::{Context as _, Result, ensure};
use tests::bench::Goal;
use tests::lab::bare;
use tests::lab::namespace::leave_the_machine;

use crate::node::{IFINDEX, Node, Took, naming_all, naming_ranges, no_rule, pod};
use crate::{Sizes, ms};

/// What one entry more or less may cost among ten thousand.
const ONE_WITHIN_MS: f64 = 1.0;
/// What the first load of ten thousand may cost.
const FIRST_WITHIN_MS: f64 = 25.0;
/// What writing fifty thousand at once may cost.
const ATOM_WITHIN_MS: f64 = 50.0;

/// A kind of change, and what it took each time.
struct Row {
    what: &'static str,
    took: Vec<Took>,
    /// Of one time: the least it can be without nothing having been measured.
    writes: usize,
}

/// Steps of one turn, in order.
type Steps = Vec<(&'static str, usize, Took)>;

pub(crate) fn measure(sizes: &Sizes) -> Result<Vec<Goal>> {
    leave_the_machine()?;
    let _interface = bare::interfaces([IFINDEX])?;
    let [pods, ranges, atom] = [
        table(sizes, sizes.entries, "pods named by a rule", pods_named)?,
        table(sizes, sizes.entries, "ranges named by a rule", ranges_named)?,
        table(sizes, sizes.atom, "pods at once", all_at_once)?,
    ];
    let mut goals = Vec::new();
    for (rows, what) in [(&pods, "pods"), (&ranges, "ranges")] {
        let mut rows = rows.iter();
        let first = rows.next().context("a first load")?;
        let goal = |what: String, figure, at_most| Goal {
            what,
            figure,
            at_most,
            unit: "ms",
        };
        goals.push(goal(
            format!("CPU of the first load of {} {what}", sizes.entries),
            ms(best(first, Took::all)?),
            FIRST_WITHIN_MS,
        ));
        let changes = rows
            .map(|row| best(row, Took::all))
            .collect::<Result<Vec<_>>>()?;
        goals.push(goal(
            format!("CPU of one entry's change among {} {what}", sizes.entries),
            ms(changes.into_iter().max().unwrap_or_default()),
            ONE_WITHIN_MS,
        ));
    }
    let writing = atom
        .iter()
        .map(|row| best(row, |took| took.writing))
        .collect::<Result<Vec<_>>>()?;
    goals.push(Goal {
        what: format!("CPU of writing {} pods at once", sizes.atom),
        figure: ms(writing.into_iter().max().unwrap_or_default()),
        at_most: ATOM_WITHIN_MS,
        unit: "ms",
    });
    Ok(goals)
}

/// The least of several turns: the machine does other things, too.
fn best(row: &Row, figure: impl Fn(&Took) -> std::time::Duration) -> Result<std::time::Duration> {
    let least = row.took.iter().map(figure).min();
    least.context("at least one turn")
}

fn table(
    sizes: &Sizes,
    count: u32,
    of: &str,
    turn: fn(&mut Node, u32) -> Result<Steps>,
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for at in 0..sizes.turns {
        let pins = format!("/sys/fs/bpf/scale-{at}");
        let mut node = Node::new(&pins, count)?;
        for (place, (what, writes, took)) in turn(&mut node, count)?.into_iter().enumerate() {
            ensure!(
                took.writes >= writes,
                "{what}: only {} writes, so nothing was measured",
                took.writes
            );
            match rows.get_mut(place) {
                Some(row) => row.took.push(took),
                None => rows.push(Row {
                    what,
                    took: vec![took],
                    writes: took.writes,
                }),
            }
        }
        drop(node);
        agent::dataplane::uninstall(Path::new(&pins))?;
    }
    sizes.say(&format!(
        "\n{:<52} {:>8} {:>12} {:>12}",
        format!("CPU: {count} {of}, best of {}", sizes.turns),
        "writes",
        "planning",
        "writing"
    ));
    for row in &rows {
        let [planning, writing] = [
            best(row, |took| took.planning)?,
            best(row, |took| took.writing)?,
        ]
        .map(|figure| format!("{:.2} ms", ms(figure)));
        sizes.say(&format!(
            "{:<52} {:>8} {planning:>12} {writing:>12}",
            row.what, row.writes
        ));
    }
    Ok(rows)
}

fn pods_named(node: &mut Node, count: u32) -> Result<Steps> {
    let new = count + 1;
    let entries = count as usize;
    Ok(vec![
        (
            "a rule comes that names all of them",
            entries,
            node.settle([naming_all()])?,
        ),
        (
            "one more comes",
            1,
            node.settle([Change::Pod(Box::new(pod(new)))])?,
        ),
        ("one goes", 1, node.settle([Change::PodGone(pod(new).uid)])?),
    ])
}

fn ranges_named(node: &mut Node, count: u32) -> Result<Steps> {
    let entries = count as usize;
    Ok(vec![
        (
            "a rule comes that names all of them",
            entries,
            node.settle([naming_ranges(count)])?,
        ),
        (
            "the rule names one more",
            1,
            node.settle([naming_ranges(count + 1)])?,
        ),
        (
            "the rule names one less",
            1,
            node.settle([naming_ranges(count)])?,
        ),
    ])
}

fn all_at_once(node: &mut Node, count: u32) -> Result<Steps> {
    let entries = count as usize;
    let mut steps = vec![(
        "a rule comes that names all of them",
        entries,
        node.settle([naming_all()])?,
    )];
    node.settle([no_rule()])?;
    node.engine.compact();
    steps.push((
        "the rule goes, and what it left is cleared away",
        entries,
        node.settle([])?,
    ));
    node.settle([naming_all()])?;
    let gone = (1..=count).map(|n| Change::PodGone(pod(n).uid));
    steps.push((
        "they go while a rule names them",
        entries,
        node.settle(gone)?,
    ));
    Ok(steps)
}
