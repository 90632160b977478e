/* Records to blocks of values, for one instruction set: see native_encode.h. */

/* Values of codes; factors may be NULL. A product of a code and an fp16 scale is exact in fp32. */
INLINE void FN(dequantize)(const uint8_t *codes, int n, float scale,
                                                                 float base, const loose_f32 *factors,
                                                                 loose_f32 *out)
{
    if (factors)
        for (int i = 0; i < n; i++)
            out[i] = ((float)(int32_t)codes[i] * scale + base) * factors[i];
    else
        for (int i = 0; i < n; i++)
            out[i] = (float)(int32_t)codes[i] * scale + base;
}

/* Values of 4-bit codes of a table. */
INLINE void FN(look_up_values)(const uint8_t *codes, int n,
                                                                     const loose_f32 *table, float scale,
                                                                     loose_f32 *out)
{
    int i = 0;
#if defined NATIVE_AVX512
    __m512 values = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    for (; i + 16 <= n; i += 16) {
        __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + i)));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(index, values));
    }
#elif defined NATIVE_AVX2
    __m256 lower = _mm256_mul_ps(_mm256_loadu_ps(table), _mm256_set1_ps(scale));
    __m256 upper = _mm256_mul_ps(_mm256_loadu_ps(table + 8), _mm256_set1_ps(scale));
    for (; i + 8 <= n; i += 8) {
        __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        __m256 a = _mm256_permutevar8x32_ps(lower, index), b = _mm256_permutevar8x32_ps(upper, index);
        __m256 which = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)); /* bit 3 to the top */
        _mm256_storeu_ps(out + i, _mm256_blendv_ps(a, b, which));
    }
#endif
    for (; i < n; i++)
        out[i] = table[codes[i]] * scale;
}

INLINE void FN(decode_block)(const struct decode_job *job, const uint8_t *codes, int n, float scale, float base,
                             const loose_f32 *factors, loose_f32 *out)
{
    const loose_f32 *table = job->table; /* what is written may be anything, as the compiler sees it */
    if (is_asym(job->format)) {
        FN(dequantize)(codes, n, scale, base, factors, out);
        return;
    }
    if (job->bits == 4)
        FN(look_up_values)(codes, n, table, scale, out);
    else
        for (int i = 0; i < n; i++)
            out[i] = table[codes[i]] * scale;
    if (factors)
        for (int i = 0; i < n; i++)
            out[i] *= factors[i];
}

/* Writes values past the caches, to memory at a multiple of 64. */
INLINE void FN(stream)(const float *values, int n, loose_f32 *out)
{
#if defined NATIVE_AVX512
    for (int i = 0; i < n; i += 16)
        _mm512_stream_ps((float *)out + i, _mm512_load_ps(values + i));
#elif defined NATIVE_AVX2
    for (int i = 0; i < n; i += 8)
        _mm256_stream_ps((float *)out + i, _mm256_load_ps(values + i));
#elif defined HAS_LEVELS
    for (int i = 0; i < n; i += 4)
        _mm_stream_ps((float *)out + i, _mm_load_ps(values + i));
#else
    memcpy(out, values, sizeof(float) * (size_t)n);
#endif
}

/* Decodes up to GROUP records of n values, to value `first` on. */
static void FN(decode_group)(const struct decode_job *job, const uint8_t *packed, size_t first, int count, int n)
{
    _Alignas(64) uint8_t codes[FN(GROUP)][LONGEST];
    uint16_t trailer[2][FN(GROUP)] = {0};
    float scale[FN(GROUP)], base[FN(GROUP)];
    int size = (n * job->bits + 7) / 8, record = size + job->trailer;
    /* Fetched ahead; an address past the end is no harm. */
    for (int line = 0; line < count * record; line += 64)
        __builtin_prefetch((const void *)((uintptr_t)packed + AHEAD + (uintptr_t)line));
    FOR_BITS(job->bits, for (int b = 0; b < count; b++)
        FOR_LENGTH(n, FN(unpack)(packed + b * record, N, BITS, codes[b])));
    for (int b = 0; b < count; b++) {
        trailer[0][b] = *(const loose_u16 *)(packed + b * record + size);
        if (job->trailer == 4)
            trailer[1][b] = *(const loose_u16 *)(packed + b * record + size + 2);
    }
    for (int b = 0; b < FN(GROUP); b++) {
        scale[b] = from_half(trailer[0][b]);
        base[b] = from_half(trailer[1][b]);
    }
    const loose_f32 *factors = job->factors ? job->factors + first % job->width : NULL;
    for (int b = 0; b < count; b++, factors = next_factors(job->factors, factors, n, job->width)) {
        loose_f32 *out = job->out + first + b * n;
        /* Two groups ahead: without it each new page is met unprepared, also by values that go past the caches. */
        uintptr_t ahead = (uintptr_t)out + 2 * FN(GROUP) * sizeof(float) * (uintptr_t)n;
        if (job->stream && n % 16 == 0) {
            _Alignas(64) float values[LONGEST];
            if (b == 0)
                __builtin_prefetch((const void *)ahead);
            FOR_LENGTH(n, FN(decode_block)(job, codes[b], N, scale[b], base[b], factors, values));
            FOR_LENGTH(n, FN(stream)(values, N, out));
            continue;
        }
        for (uintptr_t line = 0; line < sizeof(float) * (uintptr_t)n; line += 64)
            __builtin_prefetch((const void *)(ahead + line), 1);
        FOR_LENGTH(n, FN(decode_block)(job, codes[b], N, scale[b], base[b], factors, out));
    }
}

static void FN(decode_blocks)(const struct decode_job *job, const uint8_t *packed, size_t first, size_t blocks,
                              int n)
{
    size_t record = ((size_t)n * (size_t)job->bits + 7) / 8 + (size_t)job->trailer;
    for (size_t b = 0; b < blocks; b += FN(GROUP)) {
        int count = blocks - b < FN(GROUP) ? (int)(blocks - b) : FN(GROUP);
        FN(decode_group)(job, packed + b * record, first + b * (size_t)n, count, n);
    }
}

static void FN(decode_plain)(const struct decode_job *job)
{
    size_t all = job->rows * job->width;
    const loose_u16 *packed = (const loose_u16 *)job->packed;
    loose_f32 *out = job->out;
    if (job->format == F32)
        memcpy(out, packed, 4 * all);
    else if (job->format == F16)
        for (size_t i = 0; i < all; i++)
            out[i] = from_half(packed[i]);
    else
        for (size_t i = 0; i < all; i++)
            out[i] = float_of((uint32_t)packed[i] << 16);
}

static void FN(decode)(const struct decode_job *job)
{
    if (job->format < ASYM2) {
        FN(decode_plain)(job);
        return;
    }
    size_t full = job->width / (size_t)job->block, rest = job->width % (size_t)job->block;
    if (!rest) {
        FN(decode_blocks)(job, job->packed, 0, job->rows * full, job->block);
        return;
    }
    size_t short_record = (rest * (size_t)job->bits + 7) / 8 + (size_t)job->trailer;
    for (size_t row = 0; row < job->rows; row++) {
        size_t first = row * job->width;
        const uint8_t *packed = job->packed + row * job->row_size;
        FN(decode_blocks)(job, packed, first, full, job->block);
        FN(decode_blocks)(job, packed + job->row_size - short_record, first + job->width - rest, 1, (int)rest);
    }
}
