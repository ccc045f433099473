// Package killpoint lets a test kill the process at a named step. In a binary built with the tag killpoints, Hit(name) sends
// SIGKILL to its own process when DMP_KILLPOINT is name, or at the n-th hit when it is name:n. Otherwise Hit is empty.
package killpoint
