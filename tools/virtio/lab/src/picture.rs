// SPDX-License-Identifier: GPL-2.0

//! The picture of a disk's throughput across a suspend.

use anyhow::{ensure, Context, Result};
use plotters::prelude::*;
use serde::Deserialize;
use std::path::Path;

const SIZE: (u32, u32) = (800, 320);
const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const SUSPENDED: RGBColor = RGBColor(0xf2, 0xe3, 0xc6);

/// What the guest measured.
#[derive(Debug, Deserialize)]
pub struct Timeline {
    /// Seconds, and I/Os a second up to then.
    iops: Vec<(f64, f64)>,
    /// When the request to suspend had returned, and when that to resume had.
    suspended: [f64; 2],
}

pub fn draw(timeline: &Timeline, path: &Path) -> Result<()> {
    let end = timeline.iops.last().map_or(0.0, |point| point.0);
    let top = timeline
        .iops
        .iter()
        .map(|point| point.1)
        .fold(0.0, f64::max)
        * 1.1;
    ensure!(end > 0.0 && top > 0.0, "nothing to draw: no I/O was seen");
    let [from, to] = timeline.suspended;

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    (|| {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(
                "4k random reads of a disk that is suspended under load",
                ("sans-serif", 18),
            )
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 16))
            .x_desc("seconds")
            .y_desc("I/Os per second")
            .y_label_formatter(&|value| format!("{value:.0}"))
            .draw()?;
        chart.draw_series([Rectangle::new([(from, 0.0), (to, top)], SUSPENDED.filled())])?;
        chart.draw_series(LineSeries::new(
            timeline.iops.iter().copied(),
            LINE.stroke_width(2),
        ))?;
        chart.draw_series([Text::new(
            "suspended",
            (from + (to - from) * 0.05, top * 0.95),
            ("sans-serif", 15),
        )])?;
        area.present()
    })()
    .with_context(|| format!("can't draw {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_curve_and_the_suspend() {
        let path = std::env::temp_dir().join(format!("picture-{}.svg", std::process::id()));
        let mut timeline = Timeline {
            iops: vec![(0.1, 100.0), (0.2, 0.0), (0.3, 120.0)],
            suspended: [0.12, 0.21],
        };
        draw(&timeline, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.contains("<polyline") && text.contains("suspended"));
        timeline.iops.clear();
        assert!(draw(&timeline, &path).is_err());
    }
}
