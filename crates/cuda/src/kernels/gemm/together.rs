//! Products with a factor in common, as one launch: what several tiles read of that factor is read
//! once, and the tiles of all fill the device together.
//!
//! How deep a sum is cut into shares decides its bits. Only gradients of weights, which are stored
//! as they are in f32 and made once in a step, are cut for all members together; all others are
//! made whole, in the order that they have alone, so that what is recomputed has the same bits
//! whatever runs beside it.

use super::super::{Chip, MULTIPROCESSORS};
use super::arrange::{BEST, KNOWN, PART, Place, Product};
use super::choice::{
    Choice, Form, Layout, Question, RESIDENT_N, START_SECONDS, part_bytes, reading_seconds,
};
use super::epilogue;
use super::launches::{Job, Member, together};
use super::matrix::{self, A, B, FIRST, Matrices, Roles};
use super::sums::Sums;
use crate::launch::{Address, Launch};
use aerogel_graph::DType;
use aerogel_lower::{Contraction, Draws, Instr, LowerError, Program};

/// Bytes of an argument that every driver takes.
const MOST_BYTES: usize = 4096;

/// One of the products.
struct Own<'a> {
    program: Program,
    places: Vec<Place>,
    arrangements: Vec<Matrices>,
    sums: Option<Sums<'a>>,
    product: Product,
    /// Stored as it is, in f32.
    is_gradient: bool,
}

/// How the products share a launch, if their addresses are as good as they may be.
pub(super) struct Plan<'a> {
    members: Vec<Own<'a>>,
    way: Way,
}

/// How tiles of members lie to each other, and the kernel that makes them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Way {
    swapped: bool,
    side_by_side: bool,
    choice: Choice,
}

/// A plan for contractions with their operands' places; `None` where they do not share a launch, or
/// would take longer than alone. The factor that they have in common is A or B of all.
///
/// # Errors
/// Types that no device takes, or operands of another rank.
pub(super) fn plan<'a>(
    common: usize,
    members: &[(&'a Contraction, Vec<Place>)],
    chip: Chip,
) -> Result<Option<Plan<'a>>, LowerError> {
    let own = members.iter().map(|(spec, places)| Own::new(spec, places, chip));
    let members = own.collect::<Result<Vec<_>, _>>()?;
    let fits = members.iter().all(|m| !m.arrangements.is_empty());
    if !fits || !chip.architecture.is_hopper() {
        return Ok(None);
    }
    let Some(alone) = members.iter().map(Own::seconds_alone).sum::<Option<f64>>() else {
        return Ok(None);
    };
    let ways = [false, true].into_iter().flat_map(|swapped| ways(&members, common, swapped));
    let best = ways.min_by(|x, y| x.choice.seconds.total_cmp(&y.choice.seconds));
    let Some(way) = best.filter(|way| way.choice.seconds + START_SECONDS < alone) else {
        return Ok(None);
    };
    let plan = Plan { members, way };
    Ok(plan.at(BEST)?.is_some().then_some(plan))
}

impl<'a> Own<'a> {
    fn new(spec: &'a Contraction, places: &[Place], chip: Chip) -> Result<Own<'a>, LowerError> {
        let program = matrix::program(spec)?;
        let mut places = places.to_vec();
        let sums = match &spec.sums {
            Some(own) => {
                places.pop().map(|place| Sums::new(spec, own, place.known())).transpose()?
            }
            None => None,
        };
        let roles = Roles::new(spec, &program)?;
        let draws = program.instrs.iter().any(|i| matches!(i, Instr::Rand { .. }));
        let plain = !draws && !spec.accumulate && spec.a == spec.b && spec.a.is_half();
        let arrangements = if plain { roles.without_loops() } else { vec![] };
        let (dtypes, draws) = ([spec.a, spec.b], Draws::default());
        let product = Product { alpha: spec.alpha, dtypes, draws, chip };
        let is_gradient = spec.epilogue.is_none() && spec.c == DType::F32;
        Ok(Own { program, places, arrangements, sums, product, is_gradient })
    }

    /// What it takes alone; `None` where the kernel that makes it then has not the order of sums of
    /// those that members share.
    fn seconds_alone(&self) -> Option<f64> {
        let Own { product, arrangements, program, places, .. } = self;
        let sums = self.sums.as_ref();
        let choice = product.arrange(arrangements, program, places, BEST, sums, u64::MAX).1;
        let whole = choice.splits == 1 || self.is_gradient;
        let same = whole && !matches!(choice.form, Form::General { .. });
        // Parts take about twice what their bytes say: measured at 1,600 x 1,600 and 256 x 512.
        let more = match choice.splits {
            1 => 0.0,
            splits => reading_seconds(2.0 * part_bytes(arrangements.first()?, splits, 0) as f64),
        };
        same.then_some(choice.seconds + START_SECONDS + more)
    }

    fn matrices(&self, swapped: bool) -> Option<&Matrices> {
        self.arrangements.iter().find(|x| x.swapped == swapped)
    }

    fn question(&self, x: &'a Matrices, which: usize) -> Question<'a> {
        self.product.question(x, &self.program, &self.places, which, self.sums.as_ref(), u64::MAX).0
    }
}

/// How factors lie for a kernel of Hopper, and whether the right one's columns may be dealt out.
pub(super) fn layouts(forms: &[Form], resident: bool) -> Option<([Layout; 2], bool)> {
    forms.iter().find_map(|form| match *form {
        Form::Ring { layouts, permuted, .. } if !resident => Some((layouts, permuted)),
        Form::Resident { layouts, permuted, .. } if resident => Some((layouts, permuted)),
        _ => None,
    })
}

/// What members agree on of that.
pub(super) fn common_layouts(each: &[Vec<Form>], resident: bool) -> Option<([Layout; 2], bool)> {
    let list = each.iter().map(|forms| layouts(forms, resident)).collect::<Option<Vec<_>>>()?;
    let (first, _) = list[0];
    let permuted = list.iter().all(|(_, permuted)| *permuted);
    list.iter().all(|(own, _)| *own == first).then_some((first, permuted))
}

/// Columns of the tiles that all members can be made of.
pub(super) fn common_widths(each: &[Vec<Form>]) -> Vec<usize> {
    let width = |form: &Form| if let Form::Ring { bn, .. } = form { Some(*bn) } else { None };
    let all = |bn: &usize| each.iter().all(|own| own.iter().any(|form| width(form) == Some(*bn)));
    each[0].iter().filter_map(width).filter(all).collect()
}

/// The ways that members can share a launch, with what each takes.
fn ways(members: &[Own<'_>], common: usize, swapped: bool) -> Vec<Way> {
    let side_by_side = (common == A) != swapped;
    let Some(own) = members.iter().map(|m| m.matrices(swapped)).collect::<Option<Vec<_>>>() else {
        return vec![];
    };
    let same = |size: fn(&Matrices) -> usize| own.iter().all(|x| size(x) == size(own[0]));
    let side = if side_by_side { same(|x| x.m.size) } else { same(|x| x.n.size) };
    if !side || !same(|x| x.k.size) {
        return vec![];
    }
    let questions: Vec<_> = members.iter().zip(&own).map(|(m, x)| m.question(x, BEST)).collect();
    let each: Vec<_> = questions.iter().map(Question::forms).collect();
    let gradients = members.iter().all(|m| m.is_gradient);
    let mut forms = vec![];
    if let Some((layouts, permuted)) = common_layouts(&each, false) {
        // Gradients read much for what they make: wider tiles read less.
        let narrow = |bn: &usize| gradients && *bn == 128 && own[0].n.size > 128;
        let widths = common_widths(&each).into_iter().filter(|bn| !narrow(bn));
        forms.extend(widths.map(|bn| Form::Ring { bn, cluster: 1, layouts, permuted }));
    }
    if let (true, Some((layouts, permuted))) = (side_by_side, common_layouts(&each, true)) {
        let columns: usize = own.iter().map(|x| x.n.size.next_multiple_of(128)).sum();
        let both = if columns <= RESIDENT_N { &[256, 128][..] } else { &[] };
        forms.extend(both.iter().map(|&bn| Form::Resident { bn, layouts, permuted }));
    }
    let asked = |form: Form| {
        let whole = whole(&own, form, side_by_side);
        let question = Question {
            matrices: &whole,
            factors: questions[0].factors,
            hopper: true,
            traffic: questions.iter().map(|q| q.traffic).sum(),
            plain: questions.iter().all(|q| q.plain),
            beside: questions.iter().map(|q| q.beside).sum(),
            most_bytes: u64::MAX,
        };
        // Where tiles fill the device as they are, the parts of several members cost more than a
        // last round that is not full: measured with 3 x 1,600 rows by 1,600 columns.
        let fills = question.blocks(form, 1).0 >= MULTIPROCESSORS as usize;
        let splits = if gradients && !fills { question.splits(form) } else { 1 };
        Choice { form, splits, seconds: question.seconds(form, splits) }
    };
    // Tiles of two blocks of rows, unless that wastes what it gains.
    let rows = |unit: usize| own.iter().map(|x| x.m.size.next_multiple_of(unit)).sum::<usize>();
    let whole_pairs = side_by_side || 10 * rows(256) <= 11 * rows(128);
    let way = |form: Form| {
        let mut choice = asked(form);
        if let Form::Ring { bn, layouts, permuted, .. } = form {
            let pays = |q: &Question<'_>| q.cluster(bn, layouts, choice.splits) == 2;
            if whole_pairs && questions.iter().all(pays) {
                choice = asked(Form::Ring { bn, cluster: 2, layouts, permuted });
            }
        }
        Way { swapped, side_by_side, choice }
    };
    forms.into_iter().map(way).collect()
}

/// The tiles of all members as those of one product.
fn whole(own: &[&Matrices], form: Form, side_by_side: bool) -> Matrices {
    let mut all = own[0].clone();
    let (rows, cols) = match form {
        Form::Ring { bn, cluster, .. } => (128 * cluster, bn),
        Form::Resident { bn, .. } => (64, bn),
        Form::General { tile, .. } => (tile.bm, tile.bn),
    };
    match side_by_side {
        true => all.n.size = own.iter().map(|x| x.n.size.next_multiple_of(cols)).sum(),
        false => all.m.size = own.iter().map(|x| x.m.size.next_multiple_of(rows)).sum(),
    }
    all
}

impl Plan<'_> {
    /// The launches, if the addresses that are known allow them.
    ///
    /// # Errors
    /// Sizes beyond what launches hold.
    pub fn launches(&self) -> Result<Option<Vec<Launch>>, LowerError> {
        self.at(KNOWN)
    }

    /// The scratch that they take.
    pub fn bytes(&self) -> u64 {
        self.members.iter().map(|m| self.part(m)).sum()
    }

    /// That of one member.
    fn part(&self, own: &Own<'_>) -> u64 {
        let count = own.sums.as_ref().map_or(0, Sums::count);
        let bytes = own
            .matrices(self.way.swapped)
            .map_or(0, |x| part_bytes(x, self.way.choice.splits, count));
        bytes.next_multiple_of(PART)
    }

    /// The launches for one of the alignments; `None` where the members then differ in what is
    /// compiled.
    fn at(&self, which: usize) -> Result<Option<Vec<Launch>>, LowerError> {
        let Way { swapped, side_by_side, choice } = self.way;
        let resident = matches!(choice.form, Form::Resident { .. });
        let planned = layouts(&[choice.form], resident).map(|own| own.0);
        let (mut list, mut work) = (vec![], 0);
        for own in &self.members {
            let Some(x) = own.matrices(swapped) else { return Ok(None) };
            let (places, sums) = (&own.places, own.sums.as_ref());
            let asked = own.product.question(x, &own.program, places, which, sums, u64::MAX);
            let (question, along) = asked;
            if layouts(&question.forms(), resident).map(|own| own.0) != planned {
                return Ok(None);
            }
            let factors = if swapped { [B, A] } else { [A, B] };
            let order = factors.into_iter().chain(FIRST..places.len());
            let job = Job {
                program: &own.program,
                text: epilogue::text(&own.program, &along),
                choice,
                dtypes: factors.map(|i| own.product.dtypes[i]),
                alpha: own.product.alpha,
                draws: own.product.draws,
                work,
                beside: sums.and_then(|sums| sums.beside(x, &choice)),
                more: vec![],
            };
            work += self.part(own);
            if sums.is_some() != job.beside.is_some() {
                return Ok(None);
            }
            let places: Vec<Address> = order.map(|i| places[i].address).collect();
            let Program { inputs, outputs, .. } = &own.program;
            let first = vec![0; along.len() - inputs.len() - outputs.len()];
            list.push(Member { job, matrices: x, places, first });
        }
        let first = &list[0].job;
        let alike = |m: &Member<'_>| {
            m.job.text == first.text && m.job.beside.is_some() == first.beside.is_some()
        };
        if !list.iter().all(alike) {
            return Ok(None);
        }
        let own: Vec<&Matrices> = list.iter().map(|m| m.matrices).collect();
        let launches = together(&list, &whole(&own, choice.form, side_by_side), side_by_side)?;
        let fits = launches.iter().all(|l| l.parameters.bytes().len() <= MOST_BYTES);
        Ok(fits.then_some(launches))
    }
}
