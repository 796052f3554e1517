// A button that first shows what the browser's camera sees, and then takes a picture of it.
function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-button widget-button";
  button.textContent = "webcam";
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.style.maxWidth = "320px";
  video.hidden = true;
  el.append(button, video);
  let stream = null;

  function stop() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.hidden = true;
    button.textContent = "webcam";
  }

  async function start() {
    tell("trouble", "");
    try {
      // Browsers know no mediaDevices on pages that are neither https nor from this machine.
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      return tell("trouble", String(error));
    }
    video.srcObject = stream;
    await video.play();
    video.hidden = false;
    button.textContent = "take the picture";
  }

  function take() {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    tell("picture", canvas.toDataURL("image/png"));
    stop();
  }

  function tell(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  button.addEventListener("click", () => (stream ? take() : start()));
  return stop;
}

export default { render };
