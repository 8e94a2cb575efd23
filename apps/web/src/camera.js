// The camera, as a loop that hands over one frame at a time.

/**
 * Start the camera.
 *
 * @param video element that the stream is played in.
 * @param onFrame (video) -> Promise: the next frame is taken when it is done.
 * @param onError Error -> void: what `onFrame` threw; the camera has stopped by then.
 * @returns {Promise<() => void>} stops it.
 * @throws Error: one line that says why there is no camera.
 */
export async function startCamera(video, onFrame, onError) {
  const stream = await openStream();
  let running = true;
  const stop = () => {
    running = false;
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    stop();
    throw new Error(`The camera gives no picture (${error.message}): try again`);
  }
  const loop = async () => {
    if (!running) return;
    try {
      if (video.videoWidth) await onFrame(video);
      requestAnimationFrame(loop);
    } catch (error) {
      stop();
      onError(error);
    }
  };
  loop();
  return stop;
}

const REASONS = {
  NotAllowedError: 'was not allowed: allow it in the browser’s settings of this page',
  NotFoundError: 'was not found: choose a photo instead',
  NotReadableError: 'is in use by another program: close that one',
};

async function openStream() {
  if (!navigator.mediaDevices) {
    throw new Error('The camera needs a secure page: open it over https or on localhost');
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      video: { facingMode: 'environment', width: { ideal: 640 }, height: { ideal: 480 } },
    });
  } catch (error) {
    throw new Error(`The camera ${REASONS[error.name] ?? `cannot be used (${error.message})`}`);
  }
}
