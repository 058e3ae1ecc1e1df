// Panels that were drawn beforehand: the controls choose a picture and its sentence. tools/panels.py writes both.
for (const panel of document.querySelectorAll(".ntps-panel")) {
  const { states, pictures } = window.ntpsPanels[panel.dataset.panel];
  const controls = [...panel.querySelectorAll("input, select")];
  const picture = panel.querySelector(".ntps-picture");
  const reading = panel.querySelector(".ntps-reading");
  const show = () => {
    const number = states[controls.map((control) => control.value).join()];
    reading.innerHTML = pictures[number].text;
    picture.src = `${panel.dataset.pictures}/${number}.webp`;
    picture.alt = reading.textContent;
    controls.forEach((control, place) => {
      control.value = pictures[number].at[place]; // a rank that this layer does not have is cut back
      if (control.type === "range") {
        const shown = JSON.parse(control.dataset.shown)[control.value];
        control.setAttribute("aria-valuetext", shown);
        control.nextElementSibling.textContent = shown;
      }
    });
  };
  panel.addEventListener("input", show);
}
