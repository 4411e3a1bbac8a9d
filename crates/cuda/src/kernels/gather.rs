//! Rows of tables.

use super::copy::same_type;
use super::elements::{self, common_power, defines};
use super::space::{self, Units};
use super::{text, unsupported};
use crate::launch::{Address, Kernel, Parameters};
use aerogel_graph::DType;
use aerogel_lower::{GatherSpec, LowerError, Operand, RowsShape};

#[cfg(test)]
mod tests;

const THREADS: usize = 256;
const UNROLL: usize = 4;

pub(crate) fn gather(spec: &GatherSpec, align: &[u64]) -> Result<Kernel, LowerError> {
    let shape = &spec.shape;
    let operands = [&spec.table, &spec.ids, &spec.rows];
    check("gather", shape, operands)?;
    same_type("gather", [("table", spec.table.dtype), ("rows", spec.rows.dtype)])?;
    let sizes = [&shape.batch[..], &shape.rows].concat();
    if sizes.contains(&0) || shape.width == 0 {
        return Ok(Kernel::default());
    }
    let rank = sizes.len();
    let mut strides = operands.map(|o| o.strides[..rank].to_vec());
    let lane = operands.map(|o| o.strides[rank]);
    let table_row = table_row(&spec.table, rank);
    strides[0][shape.batch.len()..].fill(0);
    let space = space::merged("gather", &sizes, strides.to_vec())?;
    let table_steps = [&space.strides[0][..], &[table_row]].concat();
    let v = vector([
        (&spec.table, align[0], lane[0], &table_steps),
        (&spec.rows, align[2], lane[2], &space.strides[2]),
    ]);
    let v = common_power([shape.width], v);
    let units = Units::whole(&space, vec![lane[0], 0, lane[2]]);
    let total = units.count() * (shape.width / v);

    let mut p = Parameters::new();
    for operand in 0..3 {
        p.address(Address::operand(operand));
    }
    p.i64(table_row as i64);
    units.write(&mut p);
    space::divide(shape.width / v, &mut p);
    for n in [total, shape.first_row, shape.table_rows, shape.all_rows] {
        p.u32(space::count("gather", n)?);
    }
    let list = [("V", v), ("AXES", units.axes()), ("UNROLL", UNROLL), ("THREADS", THREADS)];
    let mut constants = defines(&list);
    constants.push(format!("T={}", text::type_name(spec.table.dtype)));
    let grid = ([total.div_ceil(THREADS * UNROLL) as u32, 1, 1], THREADS as u32);
    let launch = elements::launch(("gather.cu", "gather"), None, constants, grid, &p);
    Ok(elements::kernel(vec![launch], 0))
}

/// Refuses operands (table, ids, rows) that do not fit the shape.
pub(super) fn check(
    kernel: &'static str,
    shape: &RowsShape,
    operands: [&Operand; 3],
) -> Result<(), LowerError> {
    let wanted = shape.batch.len() + shape.rows.len() + 1;
    for (operand, own) in operands.into_iter().enumerate() {
        let got = own.strides.len();
        if got != wanted {
            return Err(LowerError::Rank { kernel, operand, wanted, got });
        }
        if (own.dtype == DType::U32) != (operand == 1) {
            let what = format!("operand {operand} is {:?}; ids are u32, others floats", own.dtype);
            return Err(unsupported(kernel, what));
        }
    }
    Ok(())
}

/// Elements from row to row of a table whose space has so many axes before the width.
pub(super) fn table_row(table: &Operand, rank: usize) -> isize {
    rank.checked_sub(1).map_or(0, |last| table.strides[last])
}

/// Elements of a vector along the width, of which each operand has some: with the bytes that its
/// address is a multiple of, its stride along the width, and its steps along all else. 16 bytes of
/// the narrowest type at most, 1 if an operand is not contiguous.
pub(super) fn vector(operands: [(&Operand, u64, isize, &[isize]); 2]) -> usize {
    let narrowest = operands.iter().map(|o| o.0.dtype.bytes()).min().unwrap_or(4);
    let each = operands.map(|(operand, align, lane, steps)| {
        let aligned = elements::alignment(operand, align, steps);
        match lane {
            1 if aligned * operand.dtype.bytes() >= 16 => 16 / narrowest,
            1 => aligned,
            _ => 1,
        }
    });
    each[0].min(each[1]).min(16 / narrowest)
}
