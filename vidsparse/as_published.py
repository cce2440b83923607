"""How near each named method is to what its authors published, in words: a table of the docs.

Constants that differ from model to model are rows of ``pipelines/published.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AsPublished:
    """One method.

    Attributes:
        preset: Its name.
        rule: What is done as published, with its constants.
        rounded: What the paper decides token by token and we by blocks; empty if nothing.
        differs: What is done otherwise, and why; empty if nothing.
    """

    preset: str
    rule: str
    rounded: str = ""
    differs: str = ""


AS_PUBLISHED: tuple[AsPublished, ...] = (
    AsPublished(
        preset="radial",
        rule="the mask of its authors' code: near frames and the first one whole, bands that "
        "halve with each doubling of the distance in time, distant frames thinned out",
        rounded="a block is computed if a third of its pairs lie in the mask, counted on true "
        "spans of tokens, where theirs drops blocks at the edges of frames; nothing with "
        "`masks=token`",
        differs="dense steps as published on its models alone; elsewhere the usual ramp",
    ),
    AsPublished(
        preset="sta",
        rule="a window of whole tiles around the tile of a query, moved inside at the borders",
        differs="tiles of 4 x 4 x 4, where theirs are 6 x 8 x 8 (`tile_*`, `unit_*`); a head takes "
        "the window or a slab by sampled error at every step; `vidsparse calibrate sta` chooses "
        "over prompts for each step, layer and head, as theirs do, among these four",
    ),
    AsPublished(
        preset="xattention",
        rule="sums along antidiagonals at a stride of 8 in blocks of 128, softmax over a row, the "
        "fewest blocks that hold .9",
        differs="one threshold for all heads, where theirs are found for each; the diagonal stays",
    ),
    AsPublished(
        preset="svg2-ear",
        rule="the clusters of `svg2`; those that are skipped attend through their means, ln of "
        "their size added; the clusters whose mean errs most are exact, as many keys as top-p .85 "
        "pays for",
        differs="clusters start at a few of their members of the step before, not at centroids; "
        "keys are shared by need in a whole head; dense steps as published on its models alone",
    ),
    AsPublished(
        preset="rectified",
        rule="means of blocks of 128 along a curve; of each row the fewest that hold .3 and a "
        "fifth at least; the output shrunk to its share of the mass, and mean values added of "
        "blocks whose gain exceeds their error",
        differs="a Hilbert curve in the smallest cube; means weighted by the size of blocks; no "
        "blocks of the first frame and of neighbours, which a curve spreads; dense steps as "
        "published on its models alone",
    ),
    AsPublished(
        preset="draft-attention",
        rule="means of windows of 8 x 16 of a frame; tokens reordered so that a window is a block "
        "of 128; of all entries of a head's map, rows summing to one, the share `density` from the "
        "percentile up, ties too; text exact besides; no diagonal; dense for 15 of 50 steps and "
        "in the first layer",
        rounded="nothing where 8 divides the rows and 16 the columns, which its authors ask for; "
        "on other grids blocks are cut every 128 tokens of the same order, and text before the "
        "video shifts them",
        differs="a row that the percentile leaves empty keeps its best block",
    ),
    AsPublished(
        preset="lite-attention",
        rule="a block whose every score lags the running maximum of its row by more than `margin` "
        "(-10, log2) is not visited again in the run; the first block visited always stays; "
        "visits change direction at each step; `must_keep` ranges are never dropped; the first "
        "step is dense; `margins` reads thresholds by layer and step, which `vidsparse "
        "calibrate lite-attention` finds for a relative L1 error of .05",
        rounded="blocks of 128 x 128; theirs are 128 x 176 at a head of 128",
        differs="the error is one for all steps, where theirs is smaller for early ones, by how "
        "much is not known; the diagonal and text always stay; the direction follows the step's "
        "number, so a cache that skips steps may keep it; `lite`, ours, starts at the diagonal, at "
        "-6, and opens 1% of the blocks again at every step",
    ),
    AsPublished(
        preset="svg",
        rule="64 sampled rows; of a band in raster order and the same band with all frames of a "
        "place side by side a head takes what errs less; the band reaches 1 - sqrt(1 - density) "
        "of the sequence; on Wan `sink`: every query sees the first n positions of its order, n "
        "a frame's tokens, beside the density; `choose_every=1` chooses at every step",
        rounded="the band's width, to the blocks that the density pays for; theirs to 128 tokens",
        differs="a head chooses once a generation, which was 0.4 to 0.8 dB better, and at the "
        "density that runs, where theirs compares bands of fixed width; rows are drawn from the "
        "whole sequence",
    ),
    AsPublished(
        preset="svg2",
        rule="k-means of queries (100) and, apart, of keys (500): 50 iterations at the first dense "
        "step, then 2 at every step from the centroids of the one before; q clusters keep the "
        "likeliest key clusters, by centroids and sizes, to .9 of the mass and a tenth of the "
        "clusters at least; dense for 30% of the steps and in the first layer",
        differs="a fixed number of iterations instead of a test for convergence; text is one "
        "cluster at each end; guidance branches share the clusters and the plan of the first; "
        "centroids wait in host memory (0.5 GB at Wan 14B)",
    ),
    AsPublished(
        preset="adaspa",
        rule="block sums of exact attention in blocks of 64; the same number of blocks in every "
        "row of a head, at a mean density of .2; text exact besides, no diagonal; heads in three "
        "classes by recall (over .8: half the density, as many of the lowest: one and a half "
        "times); searched at steps 10 and 30 of 50, the second time under the log-sum-exps of "
        "the first; dense for 10 steps",
        differs="at most half of the heads give, where more than half keep over .8 and the paper "
        "has no rule; a run of another length is searched every 20 steps: give `replan=8` for one "
        "of 20; the log-sum-exps wait in host memory (0.5 GB at Wan 14B)",
    ),
    AsPublished(
        preset="sparsed",
        rule="mean exact attention of blocks of 128; of each row the best int(.3 n) + 1 blocks; "
        "searched once, at the first step that is not dense, and kept; dense for 20% of the steps",
        differs="a method for language: here text is exact, where its prompt's columns are "
        "selected too, apart from the others",
    ),
    AsPublished(
        preset="psa",
        rule="the largest probability between a quarter of the tokens of two blocks, drawn at "
        "random; a row's best 10% of blocks exactly, the next 5% through means of 2 keys, the next "
        "20% of 8, the rest not at all, ln of the tokens added to a mean's score; blocks of 128 "
        "along a curve; dense for 15 of 50 steps; `cap=True` limits means by the likeness of keys "
        "(.7, .65, .6), as their older kernel does; for Wan 14B, A14B and 5B of a row's sorted "
        "importance the blocks that hold .4 (.5, .6) exactly, up to .5 (.6, .7) through means of "
        "2, up to .6 of 4 (14B alone), up to .8 of 8, 6% of the blocks exactly at least "
        "(`p`, and `level*` as shares of it)",
        differs="a launch for each level, merged by log-sum-exp: the numbers of their one pass; "
        "a Hilbert curve in the smallest cube instead of Gilbert's; the diagonal and the last "
        "block are exact; draws are seeded by layer and step; the block that crosses a share is in "
        "it (assumed), and no level is rounded up to a full tile of their kernel",
    ),
    AsPublished(
        preset="rainfusion",
        rule="on rows of the first frame a head is temporal if a band with all frames of a place "
        "side by side holds `recall` of the mass; else on evenly spaced rows spatial if a band in "
        "raster order does; else textural: all queries see every other key, by frame + row + "
        "column; half of the pairs in each; dense for 10% of the steps",
        rounded="the bands; the checkerboard is exact, but for the block where its half ends",
        differs="assumed, as the paper does not say it: recall .9, 64 rows, one choice a "
        "generation, no key frames; the diagonal stays",
    ),
    AsPublished(
        preset="sparse-vdit",
        rule="a head takes, of a diagonal, many diagonals, vertical stripes, nothing at all (its "
        "output is zero) and everything, what has the least error + .5 x density; everything "
        "where all others lose more than 1; `choices` reads what "
        "`vidsparse calibrate sparse-vdit` found offline, for each step, layer and head",
        rounded="the patterns, to blocks",
        differs="the error is relative to the mean square output of the layer's heads, since the "
        "paper's has a scale of its model; patterns keep the density of the preset, where theirs "
        "have fixed widths that are not given; without a file heads choose once in a generation, "
        "on 64 rows; a skipped head computes its diagonal, and text rows stay exact",
    ),
    AsPublished(
        preset="paro",
        rule="of the six nestings of frame, row and column a head takes that of the least "
        "alpha (1 - empty) + (1 - alpha) uneven, each over its sum; empty: share of blocks of 64 "
        "of which 90% of the entries are below .001; uneven: mean of largest over mean entry; no "
        "dense steps; `vidsparse calibrate paro` finds that offline, one nesting a head, and keeps "
        "a mask of blocks for each head and step of the first half of the run, and one for all "
        "later steps: the blocks of the most exact attention, `density` of each head's map; "
        "`precision=int8` beside it",
        differs="alpha, which is not published, is .5; the sign of emptiness is its words', not "
        "its formula's; 16 blocks of queries stand for all; without a file masks are made at every "
        "step from block means; those of a file are of the first prompt and guidance branch, and "
        "the mask that later steps share is that of the first of these (assumed)",
    ),
    AsPublished(
        preset="re-ttention",
        rule="places of a frame within int(.03125 n) // 2 of one another in raster order, in all "
        "frames; at a dense step each row's share of the mass and the residual, dense less "
        "sparse x share; at others sparse x share, which rises by .04 a step, plus the residual; "
        "dense for 15 of 50 steps and every fifth one after",
        rounded="the band, to blocks of which half the pairs lie in it, with all frames of a place "
        "side by side: 3.25% of the pairs at CogVideoX's 13 x 30 x 45, where the rule has 3.16%",
        differs="the share stops at one; the residual stands before the output projection, which "
        "is linear, so the same; it waits in host memory in the model's dtype, 31 GB for each "
        "guidance branch at Wan 14B in 16 bits: refused with the number above "
        "`most_gigabytes=24`; means of blocks in its place were worse than no residual",
    ),
    AsPublished(
        preset="gna",
        rule="NATTEN's rule along each axis: window, stride and dilation; tokens in boxes of "
        "2 x 8 x 8, those of each dilation's residue together; HunyuanVideo's window of 18 x 24 x "
        "24 at a stride of 16 x 8 x 8, 9% of 30 x 48 x 80; FLUX at 4096 x 4096: `window_height=80 "
        "window_width=80 stride_height=16 stride_width=16 tile_frames=1 tile_height=16 "
        "tile_width=8` (9.8%)",
        rounded="nothing: a block that a window cuts through is computed and then masked (none "
        "where tiles divide strides, windows and what is left beside them, as in these two); with "
        "`masks=block` or under a density whole, if half of its pairs lie in a window",
        differs="one window for all layers: the tables by layer of Cosmos-Predict2, for weights "
        "trained so, are not here; dense for 24% of the steps, assumed from STA",
    ),
    AsPublished(
        preset="vmoba",
        rule="blocks are boxes of 2 frames, of 3 x 4 places in all frames, of 4 x 6 x 4, by layer; "
        "each token goes by q . mean(k) as it is, moved to [0, 1] by its smallest and largest; its "
        "own box is in, others follow until .25 of the sum is, one at least; its attention is to "
        "exactly those; a `density` is the number of boxes instead, as its top-k; dense for 12 of "
        "50 steps",
        differs="boxes at the end of an axis are smaller, where its sizes have to divide; text is "
        "seen by all and sees all; its other scopes of the threshold, a box, a head or all, are "
        "not here; queries are copied for each box that they picked",
    ),
    AsPublished(
        preset="twilight",
        rule="candidates by any estimator (`--set estimator=...`); scores of exact queries and "
        "keys of 4 bits between each token's smallest and largest number; of each row's "
        "candidates the fewest that hold .85 of their mass; the first two layers dense",
        rounded="a query's choice, to blocks of queries: the mean of their probabilities",
        differs="a method for decoding language, where one query chooses among pages of 16 and a "
        "budget of 8,192: here half of the blocks are candidates; keys of 4 bits are read "
        "in the model's dtype",
    ),
    AsPublished(
        preset="clear",
        rule="keys with dx^2 + dy^2 < radius^2 and all text, in every layer",
        rounded="nothing: blocks of 8 x 8 tokens that the circle cuts through are computed and "
        "then masked; with `masks=block` or under a density whole, if a third of their pairs lie "
        "in it",
        differs="its weights are trained for the mask; on others it is no more than a window",
    ),
    AsPublished(
        preset="delta",
        rule="every 64th row (`exact_every`), the first of its run, attends densely; the "
        "difference is added to all rows of the run",
        rounded="the window and the first tokens, to whole blocks",
        differs="the paper is of language models. The window of 2,048 tokens lies half on either "
        "side and is whole blocks, as are the 64 first tokens (our number: the paper says "
        '"sinks"). '
        "Runs are of the plan's order. `exact_at=middle` takes the nearest row to all "
        "others. `correction=delta` fits every preset: with clusters, stand-ins, levels, and "
        "while observing; a head that `sparse-vdit` skips stays zero",
    ),
    AsPublished(
        preset="pbs",
        rule="keys and values of each segment of 256 in the order of their importance, queries as "
        "they are; means of blocks of 128, the fewest that hold .9 of a row's mass",
        differs="the paper's are language models: what is important there the last 128 queries "
        "say, here 128 drawn from the whole sequence (`judges`). There a row always keeps its own "
        "segment, since it may not look ahead, and the first block; here its diagonal block and "
        "text",
    ),
    AsPublished(
        preset="proxyattn",
        rule="q and k are means over groups of heads; of every few tokens the first stands for "
        "all; a block scores the largest share between any two; each head keeps, in every row, as "
        "many blocks as hold a share of the exact mass of 128 rows",
        differs="known from descriptions alone. Assumed: 4 groups of neighbouring heads (the "
        "paper groups by likeness; in video models heads differ more), one token in 4, a share of "
        "0.9, blocks of 128. The exact rows are drawn from the whole sequence, there they are the "
        "last block's. `scoring_heads=4` fits every estimator that looks at data in an order that "
        "heads share",
    ),
    AsPublished(
        preset="minference",
        rule="1,000 columns and 6,096 diagonals of each head, by the exact attention of 64 rows; "
        "the first column and the main diagonal always",
        rounded="columns and diagonals, to whole blocks of 64: 16 columns and 96 diagonals of them",
        differs="both are counted in whole blocks of 64, so 16 columns and 96 diagonals of them. "
        "The rows are drawn from the whole sequence, there they are the last, and diagonals run "
        "to both sides. A density makes both more or fewer by one factor. Which heads take the "
        "block-sparse pattern instead was searched offline for each language model: not here",
    ),
    AsPublished(
        preset="mminference",
        rule="the grid: with the frames of a place side by side (stride of a frame) or the frames "
        "and rows of a column (stride of a row), columns are tokens of one residue; each head "
        "takes the pattern that errs least",
        rounded="as `minference`; the phase of a grid, to whole blocks",
        differs="the stride is known in a grid, so only the phase is searched, in whole blocks. "
        "Heads choose once a generation by the error of 64 sampled rows at density 0.25, there "
        "offline. The constants of `minference` serve in all orders (assumed). Text is exact, "
        "which is its modality boundary",
    ),
    AsPublished(
        preset="tidal",
        rule="a layer selects, the layers after it use that selection until one selects anew; "
        "`dense_layers=2` is the paper's start",
        rounded="the choice of single tokens, to blocks of keys for blocks of queries",
        differs="the paper is of decoding, where one query picks single tokens by exact scores, "
        "and where a layer near 9 or 13, found for each model, is the only one to select again. "
        "Here every seventh layer does (with two dense ones 2, 9, 16, ...), each query block "
        "picks key blocks, by the exact mass of 8 of its rows, and the density is ours. "
        "`share_layers=7` fits every preset whose plans layers can share; it is refused where an "
        "order or estimator differs by layer, where errors are measured, under budgets, and where "
        "heads differ in number. `session.stats.plans` counts whose plan each call ran",
    ),
    AsPublished(
        preset="sparge",
        rule="the mean cosine of all pairs of a block's tokens; at most .6, its keys are left out "
        "of the softmax and read by every row, its queries read all keys; of the others the "
        "fewest blocks that hold .98 of a row's mass",
        differs="blocks are 64 x 64 (there 128 x 64, or 64 x 128 on Hopper). The thresholds are "
        "one setting of the release for all layers and heads; its search for each head, the "
        "skipping of products of small weights inside the kernel, and its low bits are not here "
        "(`precision=int8` is ours). How much is computed follows from the data; a density stands "
        "in for the .98 alone, and unlike blocks come beside it. `min_similarity=0.6` fits every "
        "estimator that looks at data in equal blocks",
    ),
    AsPublished(
        preset="sol",
        rule="threshold `mean + tau * deviation` of the scores of the means, tau 1, and the "
        "blocks beside the diagonal; all others through their mean key and value, in one softmax; "
        "a fifth of the run dense",
        differs="the deviation is the paper's exact form. A block is decided by its mean query, "
        "as there. Sinks are text alone. On a ramp, if one is asked for, tau is that which keeps "
        "the ramp's share of normal scores",
    ),
    AsPublished(
        preset="subblock",
        rule="log-sum-exp over 4 x 4 means of blocks of 64, a quarter of the blocks in each row, "
        "from 4,096 tokens on",
        differs="ten dense steps, of 50 assumed, so 0.2 of the run",
    ),
    AsPublished(
        preset="coreset",
        rule="boxes of 2 x 3 x 2; the centre and the five tokens whose queries are least like its "
        "own are kept, with their keys and values; they attend to one another, a token that is "
        "not kept takes its centre's output",
        rounded="the last block of what is kept may hold tokens that are not",
        differs="the rule for Wan (for HunyuanVideo keys are chosen by their own likeness). The "
        "last block of what is kept may hold tokens that are not, and a row of none of them reads "
        "its own block, which nobody uses. Boxes that end short are kept to the same share (there "
        "the grid must divide). Text is exact. VORTA gives it to some heads: `vorta`. Another "
        "density keeps its root of the tokens",
    ),
    AsPublished(
        preset="vorta",
        rule="a head takes a window of 3 x 3 x 3 tiles of 6 x 8 x 8, moved inside at the borders, "
        "the coreset of `coreset`, or everything",
        rounded="as `coreset` and `sta`",
        differs="its router is trained, and sees the step alone; here a head takes what has the "
        "least squared error on 64 rows, relative to the layer's outputs, + .5 x density "
        "(assumed), at every step, or offline by `vidsparse calibrate vorta`: then it too sees "
        "the step, layer and head alone. Copies are in the error. It takes everything where the "
        "others lose more than .5",
    ),
    AsPublished(
        preset="vidtome",
        rule="chunks of 4 frames, one of them drawn; of the tokens of the other three the .9 with "
        "the largest cosine to one of it leave, and take its output. Then chunk by chunk: with "
        "probability 1/2 the .8 of a chunk's tokens that are most like a global token leave and "
        "take its output, and what the chunk attends through, its own or global, is global next; "
        "else all of the chunk's tokens stay and are global next. No dense steps. That is a mean "
        "density of .06 at 21 latent frames; at other lengths and densities both shares move "
        "together (`global_share` is 8/9 of the other)",
        rounded="as `coreset`",
        differs="there an image model sees one chunk at a time, so a chunk attends to its own "
        "tokens and to the global ones, of which .8 merge into its own where the coin falls so; "
        "here the video is one sequence and all that is kept attends to all that is kept: such "
        "global tokens stay, for the chunk that they are of, and a global token that two merged "
        "into counts once. Merging hidden states before the projections, as there, saves those "
        "too. Here likeness is of the keys of all heads together, which are made of the hidden "
        "states and of positions; what leaves is neither averaged nor weighted, as there. Chunks "
        "come in order and all but the last are whole; in their code the first has a random "
        "length, and a quarter of the chunks (`mix-4`) come in random order. All layers merge, "
        "since all have one resolution. Blocks are rounded as for `coreset`",
    ),
    AsPublished(
        preset="freeswim",
        rule="all frames, 31 rows x 53 columns: half of the training grid at 480p (15, 26) on "
        "either side; at the edge the window moves inward and stays as large. With "
        "`session.full_field(every=2)`: a dense pass from the same latents, whose cross-attention "
        "replaces that of the conditional call, layer by layer, for 2 steps",
        rounded="the window, to blocks of which a third of the pairs lie in it; nothing with "
        "`masks=token`",
        differs="blocks with a third of their pairs inside are kept; they are boxes of 16 frames, "
        "as the window has all: on Wan at 720p 0.52 of all pairs are then computed with "
        "`masks=token`, in boxes of one frame 0.80. The dense pass is more than "
        "attention in one call, so it is not of the preset but of the session, from Python and on "
        "Wan 2.1 and 2.2 alone. It comes before the conditional call, where theirs run as one "
        "batch, which computes the same. Of image-to-video models the part that attends to the "
        "image is replaced too, where theirs keeps it. Not here: the factor of 1.046 on all "
        "scores, of windows and of the dense pass. The start from a small video is the pipeline's "
        "own (`--video`, `--strength 0.7`). The dense start and the ramp are ours: theirs has "
        "windows from the first step (`warmup=0`, `ramp_until=0`). Give `window_height` and "
        "`window_width` of the size that your model was trained at",
    ),
)
