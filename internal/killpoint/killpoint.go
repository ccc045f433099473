// Package killpoint lets a test kill the process at a named step. In a binary built with the tag killpoints, Hit(name) sends
// SIGKILL to its own process when DMP_KILLPOINT is name, or at the n-th hit when it is name:n. If DMP_KILLPOINT_ARMED names
// a file, hits count only while it exists: a process does some things by itself, at any time. Otherwise Hit is empty.
package killpoint
