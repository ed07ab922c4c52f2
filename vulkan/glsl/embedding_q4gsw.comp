#version 450 core

// et_vk.embedding_q4gsw: out[i, d] = (code[index[i], d] - 8) * scale[index[i], d / G]   (docs/contract.md 2, 7)
//
// One source, 24 variants by these defines (impl/dispatch/variants.py lists them):
//   OUT_HALF        t_out is float16, else float32
//   SCALES_HALF     t_scales is float16, else float32
//   IO_TEXTURE      t_out is an image3D and t_indices an isampler3D, else both are buffers
//   WEIGHT_BLOCK    t_weight is in the block layout, else flat
//   WEIGHT_TEXTURE  (block only) t_weight is an isampler2D, texel (k4, n8), else a buffer
//
// Bindings, push constants and specialization constants 0 to 2 are those of ExecuTorch's runtime (contract 7.2). Constants
// 3 to 5 are ours and may be left alone: 0 means "not known when the pipeline is made".
//
// Grid: x = chunks of a row (COLUMNS columns each), y = rows, ROWS_PER_INVOCATION each, z = planes (textures only). Rows
// and planes beyond the grid are reached by striding, so a grid of any size, even 1 x 1 x 1 in y and z, is right.

#extension GL_EXT_control_flow_attributes : require
#if defined(OUT_HALF) || defined(SCALES_HALF)
#extension GL_EXT_shader_16bit_storage : require
#endif
#ifdef OUT_HALF
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#endif

layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
layout(constant_id = 3) const int KNOWN_EMBED_DIM = 0;
layout(constant_id = 4) const int KNOWN_GROUP_SIZE = 0;
layout(constant_id = 5) const int ROWS_PER_INVOCATION = 1;

// A chunk is what one 16-byte store of a buffer holds.
#if defined(OUT_HALF) && !defined(IO_TEXTURE)
#define COLUMNS 8
#else
#define COLUMNS 4
#endif

#ifndef IO_TEXTURE
layout(std430, set = 0, binding = 0) writeonly restrict buffer Out { uvec4 t_out[]; };
layout(std430, set = 0, binding = 1) readonly restrict buffer Indices { int t_indices[]; };
#else
#ifdef OUT_HALF
layout(set = 0, binding = 0, rgba16f) writeonly restrict uniform highp image3D t_out;
#else
layout(set = 0, binding = 0, rgba32f) writeonly restrict uniform highp image3D t_out;
#endif
layout(set = 0, binding = 1) uniform highp isampler3D t_indices;
#endif

#ifdef WEIGHT_TEXTURE
layout(set = 0, binding = 2) uniform highp isampler2D t_weight;
#else
layout(std430, set = 0, binding = 2) readonly restrict buffer Weight { uint t_weight[]; };
#endif

#ifdef SCALES_HALF
layout(std430, set = 0, binding = 3) readonly restrict buffer Scales { float16_t t_scales[]; };
#else
layout(std430, set = 0, binding = 3) readonly restrict buffer Scales { float t_scales[]; };
#endif

layout(set = 0, binding = 4) uniform OutSizes { ivec4 out_sizes; };  // W (= embed_dim), H, C, N
layout(push_constant) uniform PushConstants {
  int group_size;
  int is_linear_weight;  // each variant serves one layout; kept because the runtime pushes it
};

const uint QUIET_NAN_32 = 0x7FC00000u;
const uint QUIET_NAN_16x2 = 0x7E007E00u;

int embed_dim() { return KNOWN_EMBED_DIM != 0 ? KNOWN_EMBED_DIM : out_sizes.x; }
int group() { return KNOWN_GROUP_SIZE != 0 ? KNOWN_GROUP_SIZE : group_size; }

// The signed values of columns 4 * k4 .. 4 * k4 + 3 of a row.
vec4 values_of(const int row, const int k4) {
#ifdef WEIGHT_BLOCK
#ifdef WEIGHT_TEXTURE
  const uint word = uint(texelFetch(t_weight, ivec2(k4, row >> 3), 0)[row & 3]);
#else
  const uint word = t_weight[((row >> 3) * (embed_dim() >> 2) + k4) * 4 + (row & 3)];
#endif
  const uint codes = (row & 4) != 0 ? word >> 4 : word;
  const uvec4 nibbles = (uvec4(codes) >> uvec4(0, 8, 16, 24)) & 0xFu;
#else
  const uint word = t_weight[row * (embed_dim() >> 3) + (k4 >> 1)];
  const uint codes = (k4 & 1) != 0 ? word >> 16 : word;
  const uvec4 nibbles = (uvec4(codes) >> uvec4(4, 0, 12, 8)) & 0xFu;
#endif
  return vec4(ivec4(nibbles) - 8);
}

float scale_of(const int row, const int column) {
  return float(t_scales[row * (embed_dim() / group()) + column / group()]);
}

// Exact products of four columns; `precise` keeps a compiler from rounding product and conversion as one (contract 3.3).
vec4 dequantize(const int row, const int k4, const float scale) {
  precise const vec4 product = values_of(row, k4) * scale;
  return product;
}

bool in_table(const int row) {
  const int vocab_size = t_scales.length() / (embed_dim() / group());
  return uint(row) < uint(vocab_size);  // a negative index is a huge unsigned one
}

#ifdef IO_TEXTURE
void write_chunk(const int chunk, const int row, const ivec2 place) {
  vec4 value = vec4(uintBitsToFloat(QUIET_NAN_32));
  if (in_table(row)) {
    value = dequantize(row, chunk, scale_of(row, chunk << 2));
#ifdef OUT_HALF
    // What the image store gets is a float16 already: the store, whose rounding nothing can declare, rounds nothing.
    value = vec4(f16vec4(value));
#endif
  }
  imageStore(t_out, ivec3(chunk, place), value);
}
#else
void write_chunk(const int chunk, const int row, const int place) {
  const int chunks = embed_dim() / COLUMNS;
#ifdef OUT_HALF
  uvec4 bits = uvec4(QUIET_NAN_16x2);
  if (in_table(row)) {
    const int column = chunk << 3;
    const float first = scale_of(row, column);
    const float second = (group() & 7) == 0 ? first : scale_of(row, column + 4);
    const f16vec4 low = f16vec4(dequantize(row, chunk << 1, first));
    const f16vec4 high = f16vec4(dequantize(row, (chunk << 1) + 1, second));
    bits = uvec4(packFloat2x16(low.xy), packFloat2x16(low.zw), packFloat2x16(high.xy), packFloat2x16(high.zw));
  }
#else
  uvec4 bits = uvec4(QUIET_NAN_32);
  if (in_table(row)) {
    bits = floatBitsToUint(dequantize(row, chunk, scale_of(row, chunk << 2)));
  }
#endif
  t_out[place * chunks + chunk] = bits;
}
#endif

void main() {
  const int chunk = int(gl_GlobalInvocationID.x);
  if (chunk >= embed_dim() / COLUMNS) {
    return;
  }
  const ivec3 reach = ivec3(gl_NumWorkGroups * gl_WorkGroupSize);
  const int first = int(gl_GlobalInvocationID.y);
#ifdef IO_TEXTURE
  const int planes = out_sizes.z * out_sizes.w;
  for (int z = int(gl_GlobalInvocationID.z); z < planes; z += reach.z) {
    // The indices are a width-packed tensor too: out plane n * C + c, row y is index [n, c, y] (contract 7.1).
    const ivec2 at = ivec2(z % out_sizes.z, z / out_sizes.z);
    for (int y = first; y < out_sizes.y; y += reach.y) {
      const int row = texelFetch(t_indices, ivec3(y >> 2, at), 0)[y & 3];
      write_chunk(chunk, row, ivec2(y, z));
    }
  }
#else
  const int places = out_sizes.y * out_sizes.z * out_sizes.w;
  for (int base = first; base < places; base += reach.y * ROWS_PER_INVOCATION) {
    [[unroll]] for (int r = 0; r < ROWS_PER_INVOCATION; ++r) {
      const int place = base + r * reach.y;
      if (place < places) {
        write_chunk(chunk, t_indices[place], place);
      }
    }
  }
#endif
}
