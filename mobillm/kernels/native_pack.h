/* Codes to bytes and back, for one instruction set: see native_encode.h.
 *
 * The order of the bits is that of docs/packed-tensors.md, P8 to P12. Eight codes are handled at a time, as
 * the bytes of one number.
 */

/* The lowest `bits` (2 or 4) bits of each of 8 codes, side by side. */
INLINE uint64_t FN(gather)(uint64_t codes, int bits)
{
    codes &= each((1u << bits) - 1);
    if (bits == 4) {
        codes = (codes | codes >> 4) & 0x00FF00FF00FF00FF;
        codes = (codes | codes >> 8) & 0x0000FFFF0000FFFF;
        return (codes | codes >> 16) & 0xFFFFFFFF;
    }
    codes = (codes | codes >> 6) & 0x000F000F000F000F;
    codes = (codes | codes >> 12) & 0x000000FF000000FF;
    return (codes | codes >> 24) & 0xFFFF;
}

/* The inverse of gather. */
INLINE uint64_t FN(spread)(uint64_t packed, int bits)
{
    if (bits == 4) {
        packed = (packed | packed << 16) & 0x0000FFFF0000FFFF;
        packed = (packed | packed << 8) & 0x00FF00FF00FF00FF;
        return (packed | packed << 4) & 0x0F0F0F0F0F0F0F0F;
    }
    packed = (packed | packed << 24) & 0x000000FF000000FF;
    packed = (packed | packed << 12) & 0x000F000F000F000F;
    return (packed | packed << 6) & 0x0303030303030303;
}

/* Packs codes of 2 or 4 bits side by side, many at a time; returns how many, the caller packs the others. */
INLINE int FN(gather_many)(const uint8_t *codes, int n, int bits, int drop, uint8_t *out)
{
    int i = 0;
#if defined NATIVE_AVX512
    for (; i + 64 <= n; i += 64) {
        __m512i x = _mm512_srli_epi16(_mm512_loadu_si512(codes + i), drop);
        x = _mm512_and_si512(x, _mm512_set1_epi8((char)((1 << bits) - 1)));
        x = _mm512_or_si512(x, _mm512_srli_epi16(x, 8 - bits));
        if (bits == 4) {
            _mm256_storeu_si256((__m256i *)(out + i / 2), _mm512_cvtepi16_epi8(x));
        } else {
            x = _mm512_or_si512(x, _mm512_srli_epi32(x, 12));
            _mm_storeu_si128((__m128i *)(out + i / 4), _mm512_cvtepi32_epi8(x));
        }
    }
#elif defined NATIVE_AVX2
    for (; i + 32 <= n; i += 32) {
        __m256i x = _mm256_srli_epi16(_mm256_loadu_si256((const __m256i *)(codes + i)), drop);
        x = _mm256_and_si256(x, _mm256_set1_epi8((char)((1 << bits) - 1)));
        x = _mm256_maddubs_epi16(x, _mm256_set1_epi16((short)(1 | 256 << bits))); /* pairs of codes */
        if (bits == 2)
            x = _mm256_madd_epi16(x, _mm256_set1_epi32(1 | 65536 << 4)); /* pairs of pairs */
        x = bits == 4 ? _mm256_packus_epi16(x, x) : _mm256_packs_epi32(x, x);
        if (bits == 2)
            x = _mm256_packus_epi16(x, x);
        __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
        if (bits == 4)
            _mm_storeu_si128((__m128i *)(out + i / 2), _mm_unpacklo_epi64(low, high));
        else
            _mm_storel_epi64((__m128i *)(out + i / 4), _mm_unpacklo_epi32(low, high));
    }
#else
    (void)codes, (void)n, (void)bits, (void)drop, (void)out;
#endif
    return i;
}

/* The inverse of gather_many. */
INLINE int FN(spread_many)(const uint8_t *packed, int n, int bits, uint8_t *codes)
{
    int i = 0;
#if defined NATIVE_AVX512
    for (; i + 64 <= n; i += 64) {
        __m512i x;
        if (bits == 4) {
            x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(packed + i / 2)));
        } else {
            x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(packed + i / 4)));
            x = _mm512_or_si512(x, _mm512_slli_epi32(x, 12));
        }
        x = _mm512_or_si512(x, _mm512_slli_epi16(x, 8 - bits));
        x = _mm512_and_si512(x, _mm512_set1_epi8((char)((1 << bits) - 1)));
        _mm512_storeu_si512(codes + i, x);
    }
#elif defined NATIVE_AVX2
    for (; i + 32 <= n; i += 32) {
        __m256i x;
        if (bits == 4) {
            x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(packed + i / 2)));
        } else {
            x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(packed + i / 4)));
            x = _mm256_or_si256(x, _mm256_slli_epi32(x, 12));
        }
        x = _mm256_or_si256(x, _mm256_slli_epi16(x, 8 - bits));
        x = _mm256_and_si256(x, _mm256_set1_epi8((char)((1 << bits) - 1)));
        _mm256_storeu_si256((__m256i *)(codes + i), x);
    }
#else
    (void)packed, (void)n, (void)bits, (void)codes;
#endif
    return i;
}

/* Codes to bytes, P8 to P12; a code is in the byte's bits from `drop` up. */
INLINE void FN(pack)(const uint8_t *codes, int n, int bits, int drop,
                                                           uint8_t *out)
{
    if (bits == 8) {
        memcpy(out, codes, (size_t)n);
        return;
    }
    if (bits == 2 || bits == 4) {
        for (int i = FN(gather_many)(codes, n, bits, drop, out); i < n; i += 8) {
            int count = n - i < 8 ? n - i : 8;
            uint64_t packed = FN(gather)(load(codes + i, count) >> drop, bits);
            store(out + i * bits / 8, packed, (count * bits + 7) / 8);
        }
        return;
    }
    int lane = n / 8, rest = n % 8;
    for (int j = 0; j < lane; j += 8) {
        int count = lane - j < 8 ? lane - j : 8;
        uint64_t segments[8];
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++)
            segments[s] = load(codes + s * lane + j, count) >> drop & each((1u << bits) - 1);
#pragma GCC unroll 8
        for (int p = 0; p < bits; p++) {
            uint64_t plane = 0;
#pragma GCC unroll 8
            for (int s = 0; s < 8; s++) {
                int shift = s * bits - 8 * p; /* where the segment's lowest bit lies in the plane's byte */
                if (shift >= 0 && shift < 8)
                    plane |= (segments[s] & each(0xFFu >> shift)) << shift;
                else if (shift < 0 && shift > -bits)
                    plane |= segments[s] >> -shift & each(((1u << bits) - 1) >> -shift);
            }
            store(out + p * lane + j, plane, count);
        }
    }
    uint64_t stream = 0; /* at most 7 codes of 7 bits */
    for (int i = 0; i < rest; i++)
        stream |= (uint64_t)(codes[8 * lane + i] >> drop) << (i * bits);
    store(out + lane * bits, stream, (rest * bits + 7) / 8);
}

INLINE void FN(unpack)(const uint8_t *packed, int n, int bits,
                                                             uint8_t *codes)
{
    if (bits == 8) {
        memcpy(codes, packed, (size_t)n);
        return;
    }
    if (bits == 2 || bits == 4) {
        for (int i = FN(spread_many)(packed, n, bits, codes); i < n; i += 8) {
            int count = n - i < 8 ? n - i : 8;
            store(codes + i, FN(spread)(load(packed + i * bits / 8, (count * bits + 7) / 8), bits), count);
        }
        return;
    }
    int lane = n / 8, rest = n % 8;
    for (int j = 0; j < lane; j += 8) {
        int count = lane - j < 8 ? lane - j : 8;
        uint64_t planes[8];
#pragma GCC unroll 8
        for (int p = 0; p < bits; p++)
            planes[p] = load(packed + p * lane + j, count);
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            uint64_t segment = 0;
#pragma GCC unroll 8
            for (int p = 0; p < bits; p++) {
                int shift = s * bits - 8 * p;
                if (shift >= 0 && shift < 8)
                    segment |= planes[p] >> shift & each(((1u << bits) - 1) & (0xFFu >> shift));
                else if (shift < 0 && shift > -bits)
                    segment |= (planes[p] & each((1u << (bits + shift)) - 1)) << -shift;
            }
            store(codes + s * lane + j, segment, count);
        }
    }
    uint64_t stream = load(packed + lane * bits, (rest * bits + 7) / 8);
    for (int i = 0; i < rest; i++)
        codes[8 * lane + i] = (uint8_t)(stream >> (i * bits) & ((1u << bits) - 1));
}
