// The pixels of what a browser has decoded, as bytes (height, width, 3), RGB.

let canvas;

/** The pixels of a source without alpha, such as a video. */
export function pixelsOf(source, width, height) {
  return withoutAlpha(drawn(source, width, height), width, height);
}

/** The pixels of a bitmap that was made with `premultiplyAlpha: 'none'`, whatever its alpha. */
export function storedPixelsOf(bitmap) {
  const { width, height } = bitmap;
  const rgba = drawn(bitmap, width, height);
  // a canvas keeps colours times alpha, in 8 bits: where there is alpha, they are lost in it
  return withoutAlpha(isOpaque(rgba) ? rgba : uploaded(bitmap), width, height);
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

function drawn(source, width, height) {
  canvas ??= new OffscreenCanvas(1, 1);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

/** RGBA as stored, by way of a texture, which keeps colours and alpha apart. */
function uploaded(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl2');
  if (!gl) throw new Error('A transparent image needs WebGL, which is off here: choose one without');
  const { width, height } = bitmap;
  if (Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error(`A transparent image of ${width} x ${height} pixels is too large: choose a smaller one`);
  }
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.getExtension('WEBGL_lose_context')?.loseContext(); // a page may hold few contexts
  return rgba;
}

function withoutAlpha(rgba, width, height) {
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { width, height, data };
}
