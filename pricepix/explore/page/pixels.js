// Exact pixels: a bit each, drawn at a whole number of screen pixels.

/** Unpack base64 of bits or bytes. */
export function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** A canvas that shows an image, each of its pixels `zoom` screen pixels a side. */
export function picture(image, zoom, label) {
  const { width, height } = image;
  const canvas = document.createElement("canvas");
  size(canvas, width, height, zoom);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const packed = bytes(image.bits);
  for (let i = 0; i < width * height; i++) {
    const value = packed[i >> 3] & (0x80 >> (i & 7)) ? 255 : 0;
    pixels.data.set([value, value, value, 255], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** A canvas to lie over an image: a map of signed bytes, warm where it speaks for a rise and cold where against. */
export function heat(text, width, height, zoom) {
  const canvas = document.createElement("canvas");
  size(canvas, width, height, zoom);
  canvas.className = "over";
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const values = new Int8Array(bytes(text).buffer);
  values.forEach((value, i) => {
    const color = value < 0 ? [70, 140, 255] : [255, 120, 20];
    pixels.data.set([...color, Math.min(220, 2 * Math.abs(value))], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function size(canvas, width, height, zoom) {
  canvas.width = width;
  canvas.height = height;
  canvas.style.width = `${width * zoom}px`;
  canvas.style.height = `${height * zoom}px`;
}

/** Save what a canvas shows as a PNG file. */
export function save(canvas, name) {
  canvas.toBlob((blob) => {
    const url = URL.createObjectURL(blob);
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }, "image/png");
}
