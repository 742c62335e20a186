/** Seconds as people write them: 0:07, 12:05, 1:02:03. */
export function written(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

/** Seconds as they are read aloud: 1 minute 3 seconds. */
export function spoken(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const counts = [
    [Math.floor(whole / 3600), "hour"],
    [Math.floor(whole / 60) % 60, "minute"],
    [whole % 60, "second"],
  ];
  const parts = counts.filter(([count]) => count).map(([count, unit]) => counted(count, unit));
  return parts.join(" ") || "0 seconds";
}

export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
