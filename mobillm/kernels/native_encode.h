/* Blocks of values to records, for one instruction set.
 *
 * native.c includes this file once for each instruction set, with the macro FN giving the functions a suffix
 * and NATIVE_AVX512 or NATIVE_AVX2 defined where those instructions may be used. The loops are plain C in a
 * form that compilers turn into vector instructions, and for AVX2, which narrows only within halves of vectors,
 * instructions chosen by hand; the steps are those of docs/packed-tensors.md, each rounded once
 * (-ffp-contract=off), so that every instruction set gives the same bytes.
 *
 * A group of blocks goes through one step after the other while it is in the first-level cache: the division
 * and the rounding of 16 blocks' scales then are vector operations too, and no step waits for the one before.
 */

enum { FN(GROUP) = 16 };
/* Whether codes that are bytes are written where they belong at once: not where compilers make the vectors, as
 * it would have to know that what is read stays as it is. */
#ifdef NATIVE_AVX2
enum { FN(IN_PLACE) = 1 };
#else
enum { FN(IN_PLACE) = 0 };
#endif
/* Whether memory is fetched ahead, to read from and to write to: processors that have AVX2 only are faster by
 * themselves (1.15 instead of 0.88 times the speed of memcpy for asym8). */
#ifdef NATIVE_AVX2
enum { FN(FETCH) = 0 };
#else
enum { FN(FETCH) = 1 };
#endif

/* Smallest and largest value of a block, as keys: numbers that are ordered like the values, with NaN at the
 * ends. Unlike fp32 numbers, integers may be compared in any order, which vector reductions need. */
INLINE void FN(extremes)(const loose_f32 *x, int n, int32_t *low,
                                                               int32_t *high)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (int i = 0; i < n; i++) {
        int32_t key = key_of(x[i]);
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    *low = least;
    *high = most;
}

#ifdef NATIVE_AVX2
/* Folds 8 vectors to one whose lane b is the smallest, or with `most` the largest, number of vector b. */
INLINE __m256 FN(fold)(const __m256 *of, bool most)
{
    __m256 pairs[4], fours[2];
#define FOLD(a, b) (most ? _mm256_max_ps(a, b) : _mm256_min_ps(a, b))
    for (int i = 0; i < 4; i++) {
        __m256 a = of[2 * i], b = of[2 * i + 1];
        pairs[i] = FOLD(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 2; i++) {
        __m256 a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = FOLD(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
    }
    __m256 a = fours[0], b = fours[1];
    return FOLD(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#undef FOLD
}

/* Extremes of 8 blocks of a multiple of 16 values. fp32 numbers are compared as they are, and NaN, which gets
 * lost on the way, is looked for apart: half the instructions of making keys first. */
INLINE void FN(extremes_of_8)(const loose_f32 *const *x, int n, int32_t *low, int32_t *high)
{
    __m256 least[8], most[8], nan = _mm256_setzero_ps();
    for (int b = 0; b < 8; b++) {
        __m256 smaller = _mm256_loadu_ps((const float *)x[b]), larger = smaller;
        for (int i = 0; i < n; i += 16) {
            __m256 first = _mm256_loadu_ps((const float *)x[b] + i);
            __m256 second = _mm256_loadu_ps((const float *)x[b] + i + 8);
            smaller = _mm256_min_ps(_mm256_min_ps(smaller, first), second);
            larger = _mm256_max_ps(_mm256_max_ps(larger, first), second);
            nan = _mm256_or_ps(nan, _mm256_cmp_ps(first, second, _CMP_UNORD_Q)); /* one of the two is NaN */
        }
        least[b] = smaller;
        most[b] = larger;
    }
    for (int side = 0; side < 2; side++) {
        __m256i bits = _mm256_castps_si256(FN(fold)(side ? most : least, side));
        __m256i turned = _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1);
        _mm256_storeu_si256((__m256i *)(side ? high : low), _mm256_xor_si256(bits, turned));
    }
    if (_mm256_movemask_ps(nan))
        high[0] = INT32_MAX;
}
#endif

/* Extremes of all blocks of a group. */
INLINE void FN(search)(const loose_f32 *const *x, int count, int n, int32_t *low, int32_t *high)
{
    int b = 0;
#ifdef NATIVE_AVX2
    for (; n % 16 == 0 && b + 8 <= count; b += 8)
        FOR_LENGTH(n, FN(extremes_of_8)(x + b, N, low + b, high + b));
#endif
    for (; b < count; b++)
        FOR_LENGTH(n, FN(extremes)(x[b], N, &low[b], &high[b]));
}

INLINE void FN(quantize)(const loose_f32 *x, int n, float base,
                                                               float inverse, int32_t top, uint8_t *codes)
{
    int i = 0;
#ifdef NATIVE_AVX2
    /* Narrowing limits numbers to those of 16 and 8 bits, and leaves each half of a vector in its half. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 bases = _mm256_set1_ps(base), inverses = _mm256_set1_ps(inverse);
    for (; i + 32 <= n; i += 32) {
        __m256i code[4];
        for (int j = 0; j < 4; j++) {
            __m256 from_base = _mm256_sub_ps(_mm256_loadu_ps((const float *)x + i + 8 * j), bases);
            code[j] = _mm256_cvtps_epi32(_mm256_mul_ps(from_base, inverses));
        }
        __m256i words = _mm256_packs_epi32(code[0], code[1]), others = _mm256_packs_epi32(code[2], code[3]);
        __m256i octets = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, others), order);
        if (top < 255)
            octets = _mm256_min_epu8(octets, _mm256_set1_epi8((char)top));
        _mm256_storeu_si256((__m256i *)(codes + i), octets);
    }
#endif
    for (; i < n; i++) {
        int32_t code = rounded((x[i] - base) * inverse);
        if (top < 255) { /* the 8-bit steps are made to fit, with no fp16 number in between */
            code = code < 0 ? 0 : code;
            code = code > top ? top : code;
        }
        codes[i] = (uint8_t)code;
    }
}

/* To e4m3: 3 bits of fraction and a bias of 7, where fp32 has 23 and 127; steps of 2**-9 below 2**-6. */
INLINE void FN(quantize_f8)(const loose_f32 *x, int n, float inverse,
                                                                  uint8_t *codes)
{
    for (int i = 0; i < n; i++) {
        uint32_t bits = bits_of(x[i] * inverse), size = bits & 0x7FFFFFFF;
        uint32_t steps = (uint32_t)rounded(float_of(size) * 512.0f);
        uint32_t normal = ((size + 0x7FFFF + (size >> 20 & 1)) >> 20) - (120 << 3);
        uint32_t code = size < 0x3C800000 ? steps : normal;
        codes[i] = (uint8_t)(code | (bits >> 24 & 0x80));
    }
}

/* The runs of equal codes that a table of 256 points consists of. To compare points with the ends of all runs
 * takes a fourth of the time of looking them up one by one. */
struct FN(runs) {
    uint8_t code[32]; /* twice, for both halves of a vector */
    int8_t last[16];  /* the last point of a run, less 128: there are only signed comparisons */
    int count;        /* above 16: too many, the points have to be looked up */
};

#ifdef NATIVE_AVX2
static void FN(find_runs)(const uint8_t *table, struct FN(runs) *runs)
{
    memset(runs->last, 127, sizeof runs->last); /* nothing is larger */
    runs->code[0] = runs->code[16] = table[0];
    runs->count = 1;
    for (int i = 1; i < 256 && runs->count <= 16; i++) {
        if (table[i] == table[i - 1])
            continue;
        if (runs->count < 16) {
            runs->last[runs->count - 1] = (int8_t)(i - 1 - 128);
            runs->code[runs->count] = runs->code[runs->count + 16] = table[i];
        }
        runs->count++;
    }
}
#endif

/* Grid points to codes, in place. */
static inline void FN(look_up)(const uint8_t *table, const struct FN(runs) *runs, uint8_t *codes, int n)
{
    int i = 0;
    (void)runs;
#if defined NATIVE_AVX512
    const __m512i *quarter = (const __m512i *)table;
    __m512i a = _mm512_loadu_si512(quarter), b = _mm512_loadu_si512(quarter + 1);
    __m512i c = _mm512_loadu_si512(quarter + 2), d = _mm512_loadu_si512(quarter + 3);
    for (; i + 64 <= n; i += 64) {
        __m512i point = _mm512_loadu_si512(codes + i);
        __m512i lower = _mm512_permutex2var_epi8(a, point, b), upper = _mm512_permutex2var_epi8(c, point, d);
        __m512i code = _mm512_mask_blend_epi8(_mm512_movepi8_mask(point), lower, upper);
        _mm512_storeu_si512(codes + i, code);
    }
#elif defined NATIVE_AVX2
    __m256i change[15], code_of = _mm256_loadu_si256((const __m256i *)runs->code);
    for (int r = 0; r < 15; r++)
        change[r] = _mm256_set1_epi8(runs->last[r]);
    for (; runs->count <= 16 && i + 32 <= n; i += 32) {
        __m256i point = _mm256_loadu_si256((const __m256i *)(codes + i)), run = _mm256_setzero_si256();
        point = _mm256_xor_si256(point, _mm256_set1_epi8(-128));
        for (int r = 0; r < 15; r++)
            run = _mm256_sub_epi8(run, _mm256_cmpgt_epi8(point, change[r]));
        _mm256_storeu_si256((__m256i *)(codes + i), _mm256_shuffle_epi8(code_of, run));
    }
#endif
    for (; i < n; i++)
        codes[i] = table[codes[i]];
}

/* Widens values to fp32 and multiplies them by their channels' reciprocal factors, if not NULL. */
INLINE void FN(widen)(const struct encode_job *job, size_t first, const loose_f32 *factors, int n, float *out)
{
    const loose_f32 *x = (const loose_f32 *)job->x + first;
    const loose_u16 *halves = (const loose_u16 *)job->x + first;
    if (job->kind == KIND_F32 && factors) {
        int i = 0;
#ifdef NATIVE_AVX2
        for (; i + 8 <= n; i += 8) {
            __m256 of_channels = _mm256_loadu_ps((const float *)factors + i);
            _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps((const float *)x + i), of_channels));
        }
#endif
        for (; i < n; i++)
            out[i] = x[i] * factors[i];
    }
    else if (job->kind == KIND_F32)
        for (int i = 0; i < n; i++)
            out[i] = x[i];
    else if (job->kind == KIND_F16)
        for (int i = 0; i < n; i++)
            out[i] = from_half(halves[i]);
    else
        for (int i = 0; i < n; i++)
            out[i] = float_of((uint32_t)halves[i] << 16);
    if (job->kind != KIND_F32 && factors)
        for (int i = 0; i < n; i++)
            out[i] *= factors[i];
}

/* What quantization needs of each block of a group. */
struct FN(scales) {
    float base[FN(GROUP)], inverse[FN(GROUP)];
    uint16_t trailer[2][FN(GROUP)];
};

#ifdef NATIVE_AVX2
/* The steps below for 8 blocks of an asymN format, where the processor converts to fp16. */
INLINE void FN(choose_8)(int bits, bool asym4, const float *low, const float *high, float *base, float *inverse,
                         uint16_t *scales, uint16_t *minima)
{
    __m256 least = _mm256_loadu_ps(low), most = _mm256_loadu_ps(high), start = least, ratio;
    __m128i scale, minimum;
    if (asym4) {
        minimum = _mm256_cvtps_ph(least, _MM_FROUND_TO_NEAREST_INT);
        start = _mm256_cvtph_ps(minimum);
        __m256 step = _mm256_div_ps(_mm256_sub_ps(most, start), _mm256_set1_ps(15.0f));
        scale = _mm256_cvtps_ph(step, _MM_FROUND_TO_NEAREST_INT);
        __m128i zero = _mm_cmpeq_epi16(_mm_slli_epi16(scale, 1), _mm_setzero_si128());
        scale = _mm_blendv_epi8(scale, _mm_set1_epi16(0x3C00), zero); /* 1 */
        ratio = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_cvtph_ps(scale));
    } else {
        float merged = (float)(1 << (8 - bits)), middle = (merged - 1.0f) / 2.0f;
        __m256 spread = _mm256_sub_ps(most, least), step = _mm256_div_ps(spread, _mm256_set1_ps(255.0f));
        __m256 offset = _mm256_mul_ps(step, _mm256_set1_ps(middle));
        ratio = _mm256_div_ps(_mm256_set1_ps(255.0f), _mm256_add_ps(spread, _mm256_set1_ps(1e-8f)));
        scale = _mm256_cvtps_ph(_mm256_mul_ps(step, _mm256_set1_ps(merged)), _MM_FROUND_TO_NEAREST_INT);
        minimum = _mm256_cvtps_ph(_mm256_add_ps(least, offset), _MM_FROUND_TO_NEAREST_INT);
    }
    const __m128i negative_zero = _mm_set1_epi16(-0x8000);
    _mm256_storeu_ps(base, start);
    _mm256_storeu_ps(inverse, ratio);
    _mm_storeu_si128((__m128i *)scales, _mm_andnot_si128(_mm_cmpeq_epi16(scale, negative_zero), scale));
    _mm_storeu_si128((__m128i *)minima, _mm_andnot_si128(_mm_cmpeq_epi16(minimum, negative_zero), minimum));
}
#endif

static void FN(choose_scales)(enum format format, int bits, const float *low, const float *high,
                              struct FN(scales) *scales)
{
    float *base = scales->base, *inverse = scales->inverse;
    uint16_t *first = scales->trailer[0], *second = scales->trailer[1];
#ifdef NATIVE_AVX2
    if (is_asym(format)) {
        for (int b = 0; b < FN(GROUP); b += 8)
            FN(choose_8)(bits, format == ASYM4, low + b, high + b, base + b, inverse + b, first + b, second + b);
        return;
    }
#endif
    if (format == ASYM4) {
        for (int b = 0; b < FN(GROUP); b++) {
            second[b] = to_half(low[b]);
            base[b] = from_half(second[b]);
            uint16_t scale = to_half((high[b] - base[b]) / 15.0f);
            first[b] = scale & 0x7FFF ? scale : 0x3C00; /* 1 */
            inverse[b] = 1.0f / from_half(first[b]);
        }
    } else if (is_asym(format)) {
        /* A shortened code stands for the middle of the 8-bit codes that share it. */
        float merged = (float)(1 << (8 - bits)), middle = (merged - 1.0f) / 2.0f;
        for (int b = 0; b < FN(GROUP); b++) {
            float spread = high[b] - low[b], step = spread / 255.0f;
            base[b] = low[b];
            inverse[b] = 255.0f / (spread + 1e-8f);
            first[b] = to_half(step * merged);
            float offset = step * middle;
            second[b] = to_half(low[b] + offset);
        }
    } else {
        for (int b = 0; b < FN(GROUP); b++) {
            float largest = -low[b] > high[b] ? -low[b] : high[b];
            float twice = largest + largest, atleast = largest > 0x1p-24f ? largest : 0x1p-24f;
            base[b] = -largest;
            inverse[b] = format == F8 ? 448.0f / atleast : 255.0f / (twice + 1e-8f);
            first[b] = to_half(largest);
            second[b] = 0;
        }
    }
    for (int b = 0; b < FN(GROUP); b++) { /* no negative zero */
        first[b] = first[b] == 0x8000 ? 0 : first[b];
        second[b] = second[b] == 0x8000 ? 0 : second[b];
    }
}

/* Fetches the values that a block's place in a later group holds; an address past the end is no harm. */
INLINE void FN(fetch)(uintptr_t address, int n, enum kind kind)
{
    if (kind == KIND_F32)
        for (int line = 0; line < 4 * n; line += 64)
            __builtin_prefetch((const void *)(address + (uintptr_t)line));
    else
        for (int line = 0; line < 2 * n; line += 64)
            __builtin_prefetch((const void *)(address + (uintptr_t)line));
}

/* Encodes up to GROUP blocks of n values, from value `first` on, to records; false when a value is refused. */
static bool FN(encode_group)(const struct encode_job *job, const struct FN(runs) *runs, size_t first,
                             int count, int n, uint8_t *out)
{
    _Alignas(64) float values[FN(GROUP)][LONGEST];
    _Alignas(64) uint8_t codes[FN(GROUP)][LONGEST];
    const loose_f32 *source[FN(GROUP)];
    int32_t low[FN(GROUP)] = {0}, high[FN(GROUP)] = {0};
    float lows[FN(GROUP)], highs[FN(GROUP)];
    struct FN(scales) scales;
    enum kind kind = job->kind;
    int size = (n * job->bits + 7) / 8, trailer = job->trailer, record = size + trailer;
    if (kind == KIND_F32 && !job->factors) {
        for (int b = 0; b < count; b++)
            source[b] = (const loose_f32 *)job->x + first + b * n;
    } else {
        const loose_f32 *factors = job->factors ? job->factors + first % job->width : NULL;
        for (int b = 0; b < count; b++) {
            source[b] = values[b];
            FOR_LENGTH(n, FN(widen)(job, first + (size_t)(b * n), factors, N, values[b]));
            factors = next_factors(job->factors, factors, n, job->width);
        }
    }
    FN(search)(source, count, n, low, high);
    bool fine = true;
    for (int b = 0; b < FN(GROUP); b++) {
        fine &= high[b] <= HALF_MAX && low[b] >= ~HALF_MAX;
        lows[b] = float_of(bits_of_key(low[b]));
        highs[b] = float_of(bits_of_key(high[b]));
    }
    if (!fine)
        return false;
    FN(choose_scales)(job->format, job->bits, lows, highs, &scales);
    bool in_place = FN(IN_PLACE) && is_asym(job->format) && job->bits == 8;
    /* Two groups ahead, so that memory is read in every step and not only in the first. */
    uintptr_t ahead = (uintptr_t)job->x + (first + 2 * FN(GROUP) * (size_t)n) * (kind == KIND_F32 ? 4 : 2);
#define QUANTIZE(work)                                                                                          \
    for (int b = 0; b < count; b++, ahead += (kind == KIND_F32 ? 4 : 2) * (size_t)n) {                          \
        const loose_f32 *from = source[b];                                                                      \
        float base = scales.base[b], inverse = scales.inverse[b];                                               \
        uint8_t *to = in_place ? out + b * record : codes[b];                                                   \
        (void)base;                                                                                             \
        FOR_LENGTH(n, if (FN(FETCH)) FN(fetch)(ahead, N, kind); work);                                          \
    }
    if (job->format == F8)
        QUANTIZE(FN(quantize_f8)(from, N, inverse, to))
    else if (job->format == ASYM4)
        QUANTIZE(FN(quantize)(from, N, base, inverse, 15, to))
    else
        QUANTIZE(FN(quantize)(from, N, base, inverse, 255, to))
#undef QUANTIZE
    if (job->table)
        for (int b = 0; b < count; b++)
            FN(look_up)(job->table, runs, codes[b], n);
    for (int line = 0; FN(FETCH) && line < count * record; line += 64) /* an address past the end is no harm */
        __builtin_prefetch((const void *)((uintptr_t)out + AHEAD + (uintptr_t)line), 1);
    if (!in_place)
        FOR_BITS(job->bits, for (int b = 0; b < count; b++)
            FOR_LENGTH(n, FN(pack)(codes[b], N, BITS, DROP, out + b * record)));
    uint8_t *end = out + size;
    if (trailer == 4)
        for (int b = 0; b < count; b++, end += record) {
            uint32_t both = scales.trailer[0][b] | (uint32_t)scales.trailer[1][b] << 16;
            memcpy(end, &both, 4);
        }
    else
        for (int b = 0; b < count; b++, end += record)
            memcpy(end, &scales.trailer[0][b], 2);
    return true;
}

static bool FN(encode_blocks)(const struct encode_job *job, const struct FN(runs) *runs, size_t first,
                              size_t blocks, int n, uint8_t *out)
{
    size_t record = ((size_t)n * (size_t)job->bits + 7) / 8 + (size_t)job->trailer;
    for (size_t b = 0; b < blocks; b += FN(GROUP)) {
        int count = blocks - b < FN(GROUP) ? (int)(blocks - b) : FN(GROUP);
        if (!FN(encode_group)(job, runs, first + b * (size_t)n, count, n, out + b * record))
            return false;
    }
    return true;
}

static bool FN(encode_plain)(const struct encode_job *job)
{
    float values[PLAIN];
    size_t all = job->rows * job->width;
    int32_t limit = job->format == F32 ? 0x7F7FFFFF : job->format == BF16 ? 0x7F7F0000 : HALF_MAX;
    for (size_t start = 0; start < all; start += PLAIN) {
        int n = all - start < PLAIN ? (int)(all - start) : PLAIN;
        int32_t low, high;
        const loose_f32 *source = (const loose_f32 *)job->x + start;
        if (job->kind != KIND_F32) {
            FN(widen)(job, start, NULL, n, values);
            source = values;
        }
        FN(extremes)(source, n, &low, &high);
        if (high > limit || low < ~limit)
            return false;
        if (job->format == F32) {
            memcpy(job->out + 4 * start, source, 4 * (size_t)n);
            continue;
        }
        loose_u16 *out = (loose_u16 *)job->out + start;
        if (job->format == F16)
            for (int i = 0; i < n; i++)
                out[i] = to_half(source[i]);
        else
            for (int i = 0; i < n; i++) /* half of the lowest kept bit, less one when that bit is 0 */
                out[i] = (uint16_t)((bits_of(source[i]) + 0x7FFF + (bits_of(source[i]) >> 16 & 1)) >> 16);
    }
    return true;
}

static bool FN(encode)(const struct encode_job *job)
{
    if (job->format < ASYM2)
        return FN(encode_plain)(job);
    struct FN(runs) runs = {0};
#ifdef NATIVE_AVX2
    if (job->table)
        FN(find_runs)(job->table, &runs);
#endif
    size_t full = job->width / (size_t)job->block, rest = job->width % (size_t)job->block;
    if (!rest)
        return FN(encode_blocks)(job, &runs, 0, job->rows * full, job->block, job->out);
    size_t short_record = (rest * (size_t)job->bits + 7) / 8 + (size_t)job->trailer;
    for (size_t row = 0; row < job->rows; row++) {
        size_t first = row * job->width;
        uint8_t *out = job->out + row * job->row_size;
        if (!FN(encode_blocks)(job, &runs, first, full, job->block, out) ||
            !FN(encode_blocks)(job, &runs, first + job->width - rest, 1, (int)rest,
                               out + job->row_size - short_record))
            return false;
    }
    return true;
}
