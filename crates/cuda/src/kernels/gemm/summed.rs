//! Sums of products over the same rows and columns, as one launch: their depths follow one another,
//! and what would be stored of each and read again stays in registers.

use super::super::Chip;
use super::super::unsupported;
use super::arrange::{BEST, KNOWN, Place, Product};
use super::choice::{Choice, Form, Question, START_SECONDS};
use super::epilogue;
use super::launches::{self, Job};
use super::matrix::{A, B, FIRST, Matrices, Roles};
use super::together::{common_layouts, common_widths, layouts};
use crate::launch::{Address, Launch};
use aerogel_lower::{Contraction, Draws, LowerError, Program};

/// One of the products, and where its factors lie.
#[derive(Clone)]
pub(super) struct Term<'a> {
    pub spec: &'a Contraction,
    pub factors: [Place; 2],
}

impl Term<'_> {
    /// As if the best, or the worst, of its alignments were known.
    pub fn known_as(&self, which: usize) -> Self {
        Term { factors: self.factors.map(|place| place.known_as(which)), ..self.clone() }
    }
}

/// How the products are summed, if their addresses are as good as they may be.
pub(super) struct Plan<'a> {
    terms: Vec<Own>,
    program: &'a Program,
    swapped: bool,
    choice: Choice,
}

/// One of the products as matrices.
struct Own {
    arrangements: Vec<Matrices>,
    product: Product,
    /// Of the factors, then of what the program works on.
    places: Vec<Place>,
}

/// A plan for the sum; `None` where no launch makes it, or one would take longer than the products
/// do alone. `others` is what the program works on.
///
/// # Errors
/// Axes that are not those of the program.
pub(super) fn plan<'a>(
    terms: &[Term<'_>],
    program: &'a Program,
    others: &[Place],
    draws: Draws,
    chip: Chip,
) -> Result<Option<Plan<'a>>, LowerError> {
    let own = terms.iter().map(|term| Own::new(term, program, others, draws, chip));
    let terms = own.collect::<Result<Vec<_>, _>>()?;
    let fits = terms.iter().all(|own| !own.arrangements.is_empty());
    if !fits || !chip.architecture.is_hopper() {
        return Ok(None);
    }
    let alone = terms.iter().map(|own| {
        let Own { arrangements, product, places } = own;
        let choice = product.arrange(arrangements, program, places, BEST, None, u64::MAX).1;
        choice.seconds + START_SECONDS
    });
    let alone: f64 = alone.sum();
    let ways = [false, true].into_iter().flat_map(|swapped| {
        choices(&terms, program, swapped).into_iter().map(move |choice| (swapped, choice))
    });
    let best = ways.min_by(|x, y| x.1.seconds.total_cmp(&y.1.seconds));
    let Some((swapped, choice)) = best.filter(|x| x.1.seconds + START_SECONDS < alone) else {
        return Ok(None);
    };
    Ok(Some(Plan { terms, program, swapped, choice }))
}

impl Own {
    fn new(
        term: &Term<'_>,
        program: &Program,
        others: &[Place],
        draws: Draws,
        chip: Chip,
    ) -> Result<Own, LowerError> {
        let Term { spec, factors } = term;
        let sizes =
            super::matrix::program(&Contraction { epilogue: None, ..(*spec).clone() })?.sizes;
        if sizes != program.sizes {
            let what = format!("a term of {sizes:?} in a sum of {:?}", program.sizes);
            return Err(unsupported("products", what));
        }
        let roles = Roles::new(spec, program)?;
        let plain = spec.a == spec.b && spec.a.is_half() && spec.alpha == 1.0;
        let arrangements = if plain { roles.without_loops() } else { vec![] };
        let product = Product { alpha: 1.0, dtypes: [spec.a, spec.b], draws, chip };
        Ok(Own { arrangements, product, places: [&factors[..], others].concat() })
    }

    fn matrices(&self, swapped: bool) -> Option<&Matrices> {
        self.arrangements.iter().find(|x| x.swapped == swapped)
    }
}

/// The kernels that can make the sum, with what each takes.
fn choices(terms: &[Own], program: &Program, swapped: bool) -> Vec<Choice> {
    let Some(own) = terms.iter().map(|t| t.matrices(swapped)).collect::<Option<Vec<_>>>() else {
        return vec![];
    };
    // Rows and columns are those of the program for all.
    let like = |x: &Matrices, y: &Matrices| {
        let side = |x: &super::matrix::Axis, y: &super::matrix::Axis| {
            x.size == y.size && x.strides[FIRST..] == y.strides[FIRST..]
        };
        side(&x.m, &y.m) && side(&x.n, &y.n)
    };
    let same = terms.iter().all(|t| t.product.dtypes == terms[0].product.dtypes);
    if !same || !own.iter().all(|x| like(x, own[0])) {
        return vec![];
    }
    let question = |(term, x): (&Own, &&'_ Matrices)| {
        term.product.question(x, program, &term.places, BEST, None, u64::MAX).0.forms()
    };
    let each: Vec<Vec<Form>> = terms.iter().zip(&own).map(question).collect();
    let Some((layouts, permuted)) = common_layouts(&each, false) else { return vec![] };
    let mut whole = own[0].clone();
    whole.k.size = own.iter().map(|x| x.k.size.next_multiple_of(64)).sum();
    let first = &terms[0];
    let places = &first.places;
    let question: Question<'_> =
        first.product.question(&whole, program, places, BEST, None, u64::MAX).0;
    let widths = common_widths(&each).into_iter();
    let forms = widths.map(|bn| Form::Ring { bn, cluster: 1, layouts, permuted });
    let choice = |form: Form| {
        let mut choice = Choice { form, splits: 1, seconds: question.seconds(form, 1) };
        if let Form::Ring { bn, cluster, layouts, .. } = &mut choice.form {
            *cluster = question.cluster(*bn, *layouts, 1);
        }
        choice
    };
    forms.map(choice).collect()
}

impl Plan<'_> {
    /// The launches, if the addresses that are known allow them.
    ///
    /// # Errors
    /// Sizes beyond what launches hold.
    pub fn launches(&self) -> Result<Option<Vec<Launch>>, LowerError> {
        let Plan { terms, program, swapped, choice } = self;
        let factors = if *swapped { [B, A] } else { [A, B] };
        let planned = layouts(&[choice.form], false).map(|own| own.0);
        let (mut more, mut along) = (vec![], vec![]);
        for own in terms {
            let Some(matrices) = own.matrices(*swapped) else { return Ok(None) };
            let asked = own.product.question(matrices, program, &own.places, KNOWN, None, u64::MAX);
            if layouts(&asked.0.forms(), false).map(|own| own.0) != planned {
                return Ok(None);
            }
            along = asked.1;
            let places = factors.map(|i| own.places[i].address);
            more.push(launches::Term { matrices, places });
        }
        let first = more.remove(0);
        let Own { product, places, .. } = &terms[0];
        let job = Job {
            program,
            text: epilogue::text(program, &along),
            choice: *choice,
            dtypes: factors.map(|i| product.dtypes[i]),
            alpha: 1.0,
            draws: product.draws,
            work: 0,
            beside: None,
            more,
        };
        let others = places[FIRST..].iter().map(|place| place.address);
        let addresses: Vec<Address> = first.places.into_iter().chain(others).collect();
        let indices = vec![0; along.len() - program.inputs.len() - program.outputs.len()];
        let mut list = vec![];
        job.launches(first.matrices, &addresses, &indices, &mut list)?;
        Ok(Some(list))
    }
}
